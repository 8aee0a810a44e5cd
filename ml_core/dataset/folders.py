"""Cases from plain folders: images and masks paired by name, read once, and described for the planner."""

from __future__ import annotations

import colorsys
import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_core.dataset.case import Case
from ml_core.dataset.fingerprint import Fingerprint, FingerprintBuilder, count_values
from ml_core.dataset.near_duplicates import MOST_COMPARED, signature
from ml_core.dataset.pairing import SILENT, Folders, all_dicom, pair_folders
from ml_core.dataset.patients import BY_NAME, group_of_name, groups_of_names
from ml_core.errors import ImageError, MLError
from ml_core.files import in_order, threads_for
from ml_core.io import Image, Mask, check_pair, read_image, read_mask, stem
from ml_core.io.containers import is_junk

MOST_CLASSES = 128
LEAST_CASES = 2
CHANNEL = "_0000"

Note = Callable[[str], None]


@dataclass(frozen=True)
class Described:
    """Cases that can be read, the classes found in their masks ([{value, name, color}], ascending), and the fingerprint."""

    cases: list[Case]
    classes: list[dict[str, Any]]
    fingerprint: Fingerprint
    signatures: dict[int, NDArray[np.float16]]


def find_cases(images: Path, masks: Path, note: Note) -> list[Case]:
    """Pair the files of two folders by name, as an upload to the platform is; ids count from 1 in natural order.

    Subfolders are mirrored; one with the slices of a DICOM series is one image, and its mask is a file or a folder of its
    name. What is left out is said by `note`. Raises MLError where nothing can be paired.
    """
    listed = {"images": _listed(images, "images"), "masks": _listed(masks, "masks")}
    pairing = pair_folders(listed["images"], listed["masks"], [], mask_folders=True)
    at = {"images": images, "masks": masks}

    def path_of(name: str) -> Path:
        side, _, rest = name.partition("/")
        return at[side] / rest

    for issue in pairing.issues:
        note(f"left out: {path_of(issue.file)}: {issue.detail}")
    if not pairing.pairs:
        raise MLError(
            "no_pairs",
            f"No image in {images} has a mask of the same name in {masks}.",
            "Give both the same names; masks may end in _mask, _seg, _label or _gt.",
        )
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


@dataclass(frozen=True)
class Read:
    """The cases that could be read, the colour of each value in their masks, and what was gathered for the fingerprint.

    signatures: of ml_core.dataset.near_duplicates, by the ids of the cases; none beyond MOST_COMPARED, which are not compared.
    """

    cases: list[Case]
    colors: dict[int, str]
    builder: FingerprintBuilder
    signatures: dict[int, NDArray[np.float16]]


def read_all(cases: list[Case], note: Note, on_case: Callable[[int, int], None]) -> Read:
    """Read every pair once. What cannot be used is left out and said by `note`.

    Masks in colours keep the colour's number (r<<16 | g<<8 | b) as label value. Raises MLError where the cases do not
    belong into one training.
    """
    found = Read([], {}, FingerprintBuilder(), {})
    patients: dict[str, str] = {}
    kinds: dict[int | str, str] = {}
    pairs = in_order(_read_pair, cases, threads_for(case.image for case in cases))
    for position, (case, read) in enumerate(zip(cases, pairs, strict=True)):
        if isinstance(read, ImageError):
            note(f"left out: {case.name}: {read}")
            on_case(position + 1, len(cases))
            continue
        image, mask, seen = read
        if len(found.signatures) < MOST_COMPARED:
            found.signatures[case.id] = seen
        if mask.lossy:
            note(f"{case.mask}: The mask is a JPEG; values were set to 0 or 255. Save masks as PNG.")
        present, counts = count_values(mask.values)
        kinds.setdefault(image.dimensions, case.name)
        if len(present) > 1:  # an empty mask is coded in either way
            kinds.setdefault(mask.coding, case.name)
        for value in present:
            found.colors.setdefault(int(value), _color(int(value), mask, len(found.colors)))
        _check_kinds(kinds, len(found.colors))
        found.builder.add(image, mask.values, {int(v): int(n) for v, n in zip(present, counts, strict=True)})
        if image.patient:  # numbered, so that the identity goes no further
            group = patients.setdefault(image.patient, f"patient {len(patients) + 1}")
            found.cases.append(replace(case, group=group))
        else:
            found.cases.append(case)
        on_case(position + 1, len(cases))
    if any(case.group for case in found.cases):
        return found
    groups = groups_of_names([case.name for case in found.cases])
    if any(groups):
        known = sorted(set(groups))
        note(
            f"By their names the images come from {len(known)} patients, such as {known[0].removeprefix(BY_NAME)}: each stays on one side "
            "of the split. Number the files otherwise if that is wrong."
        )
    return replace(found, cases=[replace(case, group=group) for case, group in zip(found.cases, groups, strict=True)])


def _read_pair(case: Case) -> tuple[Image, Mask, NDArray[np.float16]] | ImageError:
    try:
        image = read_image(case.image)
        mask = read_mask(case.mask, like=image)
        check_pair(image, mask)
    except ImageError as error:
        return error
    return image, mask, signature(image)


def describe(
    cases: list[Case], note: Note, on_case: Callable[[int, int], None], names: dict[int, str] | None = None
) -> Described:
    """`read_all` with classes and fingerprint; `names` gives classes their names. Raises MLError where too little is left."""
    read = read_all(cases, note, on_case)
    values = sorted(read.colors)
    if len(read.cases) < LEAST_CASES:
        raise MLError(
            "too_few_cases",
            f"{len(read.cases)} of {len(cases)} images can be used with their masks, and {LEAST_CASES} are needed.",
            "See what was left out above.",
        )
    if len(values) < 2:
        raise MLError(
            "one_class",
            f"All masks hold the one value {values[0]}, so there is nothing to tell apart.",
            "Check that the masks were exported with the structures drawn in.",
        )
    if names:
        for value in sorted(set(names) - set(values)):
            note(f"No mask holds {names[value]} ({value}), so it is no class of the model.")
    given = {values[0]: "background", **(names or {})}
    classes = [{"value": v, "name": given.get(v, f"class {v}"), "color": read.colors[v]} for v in values]
    return Described(read.cases, classes, read.builder.result(), read.signatures)


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
            if dimensions == 3 and all_dicom(entries):
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


def _check_kinds(kinds: dict[Any, str], classes: int) -> None:
    if 2 in kinds and 3 in kinds:
        raise MLError(
            "mixed_dimensions",
            f"{kinds[2]} is a picture and {kinds[3]} a volume.",
            "Train pictures and volumes apart.",
        )
    if "values" in kinds and "rgb" in kinds:
        raise MLError(
            "mixed_coding",
            f"The mask of {kinds['values']} is coded in numbers and that of {kinds['rgb']} in colours.",
            "Code all masks in one way.",
        )
    if classes > MOST_CLASSES:
        raise MLError(
            "too_many_values",
            f"The masks hold more than {MOST_CLASSES} different values.",
            "Store every class as one number in the mask, without smoothing or lossy compression.",
        )


def _color(value: int, mask: Mask, index: int) -> str:
    if mask.coding == "rgb":
        return f"#{value:06x}"
    if own := (mask.palette or {}).get(value):
        return own
    # Hues a golden ratio apart stay distinct however many there are.
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.7 if index else 0.0, 0.9 if index else 0.3)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


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


def _state(path: Path) -> str:
    """Changes when the file, or a file of the series, does: cheaper than a checksum, and enough for one machine's cache."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        found = file.stat()
        digest.update(f"{file.resolve()} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
