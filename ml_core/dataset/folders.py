"""Cases from plain folders: images and masks paired by name, read once, and checked as an upload to the platform is."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ml_core.dataset import findings
from ml_core.dataset.case import Case
from ml_core.dataset.checks import DatasetCheck, ReadPair, read_pair
from ml_core.dataset.classes import ClassTable, Codes, LabelClass
from ml_core.dataset.findings import Issue
from ml_core.dataset.fingerprint import Fingerprint
from ml_core.dataset.pairing import SILENT, Folders, holds_series, pair_folders
from ml_core.dataset.patients import group_of_name
from ml_core.errors import ImageError, MLError
from ml_core.files import in_order, threads_for
from ml_core.io import stem
from ml_core.io.containers import CHUNK_BYTES, is_junk
from ml_core.io.content import HEAD_BYTES

CHANNEL = "_0000"

Note = Callable[[Issue], None]


@dataclass(frozen=True)
class Described:
    """Cases that can be read, the classes found in their masks ([{value, name, color}], ascending), and the fingerprint.

    codes: of masks in colours, r<<16 | g<<8 | b → label value. signatures: of ml_core.dataset.near_duplicates, by the ids of
    the cases; none beyond MAX_COMPARED, which are not compared.
    """

    cases: list[Case]
    classes: list[LabelClass]
    fingerprint: Fingerprint
    signatures: dict[int, NDArray[np.float16]]
    codes: Codes


def find_cases(images: Path, masks: Path, note: Note) -> list[Case]:
    """Pair the files of two folders by name, as an upload to the platform is; ids count from 1 in natural order.

    Subfolders are mirrored; one with the slices of a DICOM series is one image, and its mask is a file or a folder of its
    name. What is left out is said by `note`. Raises DatasetRefusedError where nothing can be paired.
    """
    listed = {"images": _listed(images, "images"), "masks": _listed(masks, "masks")}
    at = {"images": images, "masks": masks}

    def path_of(name: str) -> Path:
        side, _, rest = name.partition("/")
        return at[side] / rest

    pairing = pair_folders(
        listed["images"], listed["masks"], [], mask_folders=True, head_of=lambda name: _head(path_of(name))
    )
    issues = [replace(issue, file=str(path_of(issue.file))) for issue in pairing.issues]
    for issue in issues:
        note(issue)
    if not pairing.pairs:
        raise findings.too_few(0, issues, needed=1)
    cases, names = [], set[str]()
    for number, pair in enumerate(pairing.pairs, start=1):
        image = path_of(pair.image[0]).parent if pair.is_series else path_of(pair.image[0])
        name = pair.name.replace("/", "_")  # the name of a file in nnU-Net's layout and splits
        name = f"{name}_{number}" if name in names else name
        names.add(name)
        cases.append(make_case(number, name, image, path_of(pair.mask)))
    return cases


def make_case(number: int, name: str, image: Path, mask: Path) -> Case:
    """A Case whose key changes when one of its files does."""
    return Case(number, name, image, mask, group_of_name(name), f"{_state(image)} {_state(mask)}")


@dataclass
class ReadCase:
    """A case that was read and is good by itself: what DatasetCheck.finish has to know of it."""

    case: Case
    name: str
    file: str
    group: str
    shape: tuple[int, ...]
    signature: NDArray[np.float16]
    content: str


def read_all(cases: list[Case], check: DatasetCheck, note: Note, on_case: Callable[[int, int], None]) -> list[ReadCase]:
    """Read every pair once, and give those that `check` takes. What it says is told to `note` as well, as it comes."""
    found: list[ReadCase] = []
    patients: dict[str, str] = {}
    told = len(check.issues)
    pairs = in_order(_read_pair, cases, threads_for(case.image for case in cases))
    for position, (case, read) in enumerate(zip(cases, pairs, strict=True)):
        try:
            if isinstance(read, ImageError):
                raise read
            pair, content = read
            check.add(pair)
        except ImageError as error:
            check.leave_out(error, str(case.image))
        else:
            group = case.group
            if pair.image.patient:  # numbered, so that the identity goes no further
                group = patients.setdefault(pair.image.patient, f"patient {len(patients) + 1}")
            kept = pair.signature if len(found) < findings.MAX_COMPARED else pair.signature[:0]
            found.append(ReadCase(case, case.name, str(case.image), group, pair.image.shape, kept, content))
        for issue in check.issues[told:]:
            note(issue)
        told = len(check.issues)
        on_case(position + 1, len(cases))
    return found


def _read_pair(case: Case) -> tuple[ReadPair, str] | ImageError:
    """The pair, and what says whether two images are the same file."""
    try:
        pair = read_pair(case.image, case.mask, image_file=str(case.image), mask_file=str(case.mask))
    except ImageError as error:
        return error
    return pair, _sha256(case.image)


def describe(
    cases: list[Case], note: Note, on_case: Callable[[int, int], None], names: dict[int, str] | None = None
) -> Described:
    """Read and check the cases as one dataset; `names` gives classes their names. Raises DatasetRefusedError."""
    check = DatasetCheck(ClassTable(names=names))
    read = read_all(cases, check, note, on_case)
    told = len(check.issues)
    try:
        found = check.finish(read)
    finally:
        for issue in check.issues[told:]:
            note(issue)
    kept = [replace(item.case, group=item.group, codes=found.codes) for item in found.cases]
    signatures = {item.case.id: item.signature for item in found.cases if item.signature.size}
    return Described(kept, found.classes, found.fingerprint, signatures, found.codes)


def find_images(paths: list[Path], dimensions: int) -> list[tuple[str, Path]]:
    """(name, image) of the files given and of those in the folders given, for a model of so many dimensions.

    A folder of DICOM files alone is one series where the model works on volumes. nnU-Net's ending _0000 is no part of a
    name where all files of a folder have it. Names are made unique. Raises MLError where there is nothing.
    """
    found: list[tuple[str, Path]] = []
    for path in paths:
        if not path.is_dir():
            found.append((stem(path.name), path))
            continue
        for entries in _listed(path, "images").values():
            files = [path / entry.partition("/")[2] for entry in entries]
            heads = dict(zip(entries, files, strict=True))
            if dimensions == 3 and holds_series(entries, lambda entry, heads=heads: _head(heads[entry])):  # type: ignore[misc]
                found.append((files[0].parent.name, files[0].parent))
                continue
            names = [stem(file.name) for file in files]
            if all(name.endswith(CHANNEL) and name != CHANNEL for name in names):
                names = [name.removesuffix(CHANNEL) for name in names]
            found += zip(names, files, strict=True)
    if not found:
        raise MLError("no_images", f"There is no image in {', '.join(map(str, paths))}.", "Give files or folders.")
    times = Counter(name for name, _ in found)
    return [(name if times[name] == 1 else f"{name}_{number}", path) for number, (name, path) in enumerate(found, 1)]


def _listed(folder: Path, side: str) -> Folders:
    """What `pair_folders` takes: the files below `folder`, with `side` in place of its path."""
    if not folder.is_dir():
        raise MLError("no_folder", f"{folder} is not a folder.", f"Give the folder of the {side}.")
    found = Folders(list)
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        junk = SILENT.fullmatch(path.name) or is_junk("/".join(parts))
        if path.is_file() and not junk:
            found[(), tuple(part.casefold() for part in parts[:-1])].append("/".join((side, *parts)))
    return found


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _state(path: Path) -> str:
    """Changes when the file, or a file of the series, does: cheaper than a checksum, and enough for one machine's cache."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        found = file.stat()
        digest.update(f"{file.resolve()} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _sha256(path: Path) -> str:
    """Of a file, or of all files of a series."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        with file.open("rb") as opened:
            for chunk in iter(partial(opened.read, CHUNK_BYTES), b""):
                digest.update(chunk)
    return digest.hexdigest()
