"""Read a dataset from plain folders: pair images and masks by name, read each once, and check them like an upload."""

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
from ml_core.dataset.checks import CheckedDataset, DatasetCheck, ReadPair, UndecidedError, read_pair
from ml_core.dataset.classes import ClassTable, LabelClass
from ml_core.dataset.findings import Issue
from ml_core.dataset.fingerprint import Fingerprint
from ml_core.dataset.pairing import SILENT, Folders, holds_series, pair_folders
from ml_core.dataset.patients import group_of_name
from ml_core.dataset.reading import Codes, Decision, Reading
from ml_core.dataset.survey import MaskSurvey, read_facts
from ml_core.errors import ImageError, MLError
from ml_core.files import in_order, threads_for
from ml_core.io import stem
from ml_core.io.containers import CHUNK_BYTES, is_junk
from ml_core.io.content import HEAD_BYTES

# How nnU-Net ends the name of an image file with one channel.
CHANNEL = "_0000"

Note = Callable[[Issue], None]


@dataclass(frozen=True)
class Described:
    """A dataset that was read and checked."""

    cases: list[Case]
    """The cases that can be used."""
    classes: list[LabelClass]
    """[{value, name, color}] of the label values: the background, then the others ascending."""
    fingerprint: Fingerprint
    signatures: dict[int, NDArray[np.float16]]
    """Case id → signature (ml_core.dataset.near_duplicates); only the first MAX_COMPARED cases have one."""
    codes: Codes
    """Label value of each value in the masks (ml_core.dataset.reading); {} if each is its own."""


def find_cases(images: Path, masks: Path, note: Note) -> list[Case]:
    """Pair the files of two folders by name, as the platform pairs an upload.

    Ids count from 1 in the natural order of names. A subfolder of images is paired with the same subfolder of masks. A
    subfolder with the slices of a DICOM series is one image, and its mask is a file or folder of the same name. `note`
    receives an issue for each file that is left out. Raises DatasetRefusedError if nothing can be paired, and MLError
    no_folder if a folder does not exist.
    """
    listed = {"images": _listed(images, "images"), "masks": _listed(masks, "masks")}
    folders = {"images": images, "masks": masks}

    def path_of(name: str) -> Path:
        side, _, relative = name.partition("/")
        return folders[side] / relative

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
        # nnU-Net's layout and splits use the case's name as a file name, so it must hold no "/".
        name = pair.name.replace("/", "_")
        name = f"{name}_{number}" if name in names else name
        names.add(name)
        cases.append(make_case(number, name, image, path_of(pair.mask)))
    return cases


def make_case(number: int, name: str, image: Path, mask: Path) -> Case:
    """Make a Case whose key changes when one of its files changes."""
    return Case(number, name, image, mask, group_of_name(name), f"{_state(image)} {_state(mask)}")


@dataclass
class ReadCase:
    """A case whose pair was read and accepted.

    The fields are those of `CheckedCase`, which `DatasetCheck.finish` needs.
    """

    case: Case
    name: str
    file: str
    group: str
    shape: tuple[int, ...]
    signature: NDArray[np.float16]
    content: str


def read_all(cases: list[Case], check: DatasetCheck, note: Note, on_case: Callable[[int, int], None]) -> list[ReadCase]:
    """Read every pair once, add it to `check`, and return the cases that were accepted.

    `note` receives each issue as soon as it is found. `on_case(done, total)` is called after each case.
    """
    accepted: list[ReadCase] = []
    patients: dict[str, str] = {}
    noted = len(check.issues)
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
            # Patients are numbered, so that the PatientID is stored nowhere.
            if pair.image.patient:
                group = patients.setdefault(pair.image.patient, f"patient {len(patients) + 1}")
            kept = pair.signature if len(accepted) < findings.MAX_COMPARED else pair.signature[:0]
            accepted.append(ReadCase(case, case.name, str(case.image), group, pair.image.shape, kept, content))
        for issue in check.issues[noted:]:
            note(issue)
        noted = len(check.issues)
        on_case(position + 1, len(cases))
    return accepted


def _read_pair(case: Case) -> tuple[ReadPair, str] | ImageError:
    """Read a pair, and the checksum of its image. Returns the error instead of raising it, so that the loop goes on."""
    try:
        pair = read_pair(case.image, case.mask, image_file=str(case.image), mask_file=str(case.mask))
    except ImageError as error:
        return error
    return pair, _sha256(case.image)


def describe(
    cases: list[Case],
    note: Note,
    on_case: Callable[[int, int], None],
    names: dict[int, str] | None = None,
    reading: Reading | None = None,
) -> Described:
    """Read and check the cases as one dataset. `names` maps label values to class names, and `reading` says how masks
    are read, as far as it is known. Raises DatasetRefusedError.

    `note` receives each issue once, as soon as it is dataset. `on_case(done, total)` is called after each case.
    """
    heard: list[Issue] = []

    def note_once(issue: Issue) -> None:
        if issue not in heard:
            heard.append(issue)
            note(issue)

    try:
        dataset = _checked(cases, DatasetCheck(names=names, reading=reading), note_once, on_case)
    except UndecidedError as error:
        decision = error.decision
    else:
        return _described(dataset)
    decision = decision or _survey(cases, reading)
    return _described(_checked(cases, DatasetCheck(ClassTable(decision=decision, names=names)), note_once, on_case))


def _described(dataset: CheckedDataset[ReadCase]) -> Described:
    kept = [replace(item.case, group=item.group, codes=dataset.codes) for item in dataset.cases]
    signatures = {item.case.id: item.signature for item in dataset.cases if item.signature.size}
    fingerprint = replace(dataset.fingerprint, mask_codes=dataset.codes)
    return Described(kept, dataset.classes, fingerprint, signatures, dataset.codes)


def _checked(
    cases: list[Case], check: DatasetCheck, note: Note, on_case: Callable[[int, int], None]
) -> CheckedDataset[ReadCase]:
    for issue in check.issues:
        note(issue)
    accepted = read_all(cases, check, note, on_case)
    noted = len(check.issues)
    try:
        return check.finish(accepted)
    finally:
        for issue in check.issues[noted:]:
            note(issue)


def _survey(cases: list[Case], reading: Reading | None) -> Decision:
    """Look at all masks, and decide how they are read."""
    survey = MaskSurvey(reading)
    threads = threads_for(case.mask for case in cases)
    for facts in in_order(partial(read_facts, reading=reading), [case.mask for case in cases], threads):
        if facts:
            survey.add(facts)
    return survey.decide()


def find_images(paths: list[Path], dimensions: int) -> list[tuple[str, Path]]:
    """List (name, path) of the images among the given files and below the given folders, for a model of 2 or 3
    dimensions.

    For a model of 3 dimensions, a folder with nothing but DICOM files is one image. nnU-Net's ending _0000 is removed
    from the names of a folder if all its files have it. A number makes names unique. Raises MLError no_images if there
    is no image.
    """
    images: list[tuple[str, Path]] = []
    for path in paths:
        if not path.is_dir():
            images.append((stem(path.name), path))
            continue
        for entries in _listed(path, "images").values():
            files = [path / entry.partition("/")[2] for entry in entries]
            heads = dict(zip(entries, files, strict=True))
            if dimensions == 3 and holds_series(entries, lambda entry, heads=heads: _head(heads[entry])):  # type: ignore[misc]
                images.append((files[0].parent.name, files[0].parent))
                continue
            names = [stem(file.name) for file in files]
            if all(name.endswith(CHANNEL) and name != CHANNEL for name in names):
                names = [name.removesuffix(CHANNEL) for name in names]
            images += zip(names, files, strict=True)
    if not images:
        raise MLError("no_images", f"There is no image in {', '.join(map(str, paths))}.", "Give files or folders.")
    times = Counter(name for name, _ in images)
    return [(name if times[name] == 1 else f"{name}_{number}", path) for number, (name, path) in enumerate(images, 1)]


def _listed(folder: Path, side: str) -> Folders:
    """List the files below `folder` as `pair_folders` takes them. Their names begin with `side` instead of the path."""
    if not folder.is_dir():
        raise MLError("no_folder", f"{folder} is not a folder.", f"Give the folder of the {side}.")
    folders = Folders(list)
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        junk = SILENT.fullmatch(path.name) or is_junk("/".join(parts))
        if path.is_file() and not junk:
            folders[(), tuple(part.casefold() for part in parts[:-1])].append("/".join((side, *parts)))
    return folders


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _state(path: Path) -> str:
    """Hash the path, size and time of a file, or of the files of a series, so that it changes when a file changes.

    Reading these is cheaper than a checksum of the content, and good enough for a cache on one machine.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _sha256(path: Path) -> str:
    """The checksum of a file, or of all files of a series together."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        with file.open("rb") as opened:
            for chunk in iter(partial(opened.read, CHUNK_BYTES), b""):
                digest.update(chunk)
    return digest.hexdigest()
