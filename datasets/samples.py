"""One pair of a dataset: read, checked, and stored with its normalised mask; and its thumbnail."""

from __future__ import annotations

import colorsys
import io
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from django.utils.crypto import salted_hmac
from numpy.typing import NDArray
from PIL import Image as PILImage

from datasets.display import overlay
from medseg_site.shared.storage import objects as storage
from ml_core.dataset.fingerprint import FingerprintBuilder, count_values
from ml_core.dataset.near_duplicates import signature
from ml_core.dataset.pairing import Issue, Pair
from ml_core.dataset.patients import group_of_name
from ml_core.errors import ImageError
from ml_core.io import (
    Image,
    Mask,
    check_pair,
    display_slice,
    is_oriented,
    read_image,
    read_mask,
    to_screen,
    write_label_map,
)
from ml_core.io.containers import SafeArchive
from ml_core.io.formats import FORMATS, suffix_of

THUMBNAIL_SIDE = 256
MOST_VALUES = 64  # distinct values in one picture's mask; more means smoothing or a photograph
COLORS = [
    "#495057",
    "#f59f00",
    "#1c7ed6",
    "#37b24d",
    "#e64980",
    "#7048e8",
    "#0ca678",
    "#f76707",
    "#22b8cf",
    "#a61e4d",
]


@dataclass(slots=True)
class CheckedSample:
    """A good pair, stored."""

    name: str
    file: str  # the image's in the archive
    group: str
    shape: tuple[int, ...]
    spacing: list[float] | None
    image: storage.StoredObject
    mask: storage.StoredObject
    signature: NDArray[np.float16]  # of ml_core.near_duplicates
    issues: list[Issue] = field(default_factory=list)
    thumbnail_key: str = ""  # these three are told by ThumbnailWriter
    thumbnail_offset: int = 0
    thumbnail_size: int = 0


class ClassTable:
    """The label values seen so far, with the colour that each keeps; RGB codes become the values 0 (black), 1, 2, …

    rows: [{value, name, color}] of an earlier version of the dataset; codes: RGB code → value of it.
    """

    def __init__(self, rows: Sequence[dict[str, Any]] = (), codes: dict[int, int] | None = None) -> None:
        self._colors: dict[int, str] = {row["value"]: row["color"] for row in rows}
        self._names: dict[int, str] = {row["value"]: row["name"] for row in rows}
        self._codes: dict[int, int] = {0: 0, **(codes or {})}
        # Numbers may join masks that were colours, since those are stored as numbers; colours cannot join numbers.
        self._coding: str | None = "values" if rows and not codes else None

    def __len__(self) -> int:
        return len(self._colors)

    def values_of(self, mask: Mask) -> tuple[NDArray[Any], dict[int, int]]:
        """The mask in label values, and its pixels per value. Raises ImageError where masks are coded in two ways."""
        present, counts = count_values(mask.values)
        if mask.coding == "values" and mask.values.ndim == 2 and len(present) > MOST_VALUES:
            reason = f"The mask has {len(present)} different values, so it looks smoothed or like a photograph."
            raise ImageError(
                "too_many_values", reason, "Export it without smoothing, as PNG with one number per class."
            )
        coding = mask.coding if len(present) > 1 or mask.coding == "rgb" else None  # an empty mask fits both
        if coding and self._coding and coding != self._coding:
            raise ImageError(
                "mixed_coding",
                "This mask is coded otherwise than those before (colours or numbers).",
                "Code all masks in one way.",
            )
        self._coding = self._coding or coding
        values = present
        if mask.coding == "rgb":
            for code in present:
                self._codes.setdefault(int(code), max([*self._codes.values(), *self._colors]) + 1)
            values = np.array([self._codes[int(code)] for code in present])
            for code, value in zip(present, values, strict=True):
                self._colors.setdefault(int(value), f"#{int(code):06x}")
        for value in values:
            own = (mask.palette or {}).get(int(value))
            self._colors.setdefault(int(value), own or _next_color(len(self._colors)))
        mapped = values[np.searchsorted(present, mask.values)] if mask.coding == "rgb" else mask.values
        return mapped, dict(zip((int(v) for v in values), (int(c) for c in counts), strict=True))

    def colors(self) -> dict[int, str]:
        return self._colors

    def codes(self) -> dict[str, int]:
        """RGB code as text → value, as JSON keeps it; {} where masks are coded in numbers."""
        return {str(code): value for code, value in self._codes.items()} if len(self._codes) > 1 else {}

    def rows(self, used: set[int]) -> list[dict[str, Any]]:
        """[{value, name, color}] of the values in use, ascending; the lowest is background."""
        ordered = sorted(used)
        return [
            {
                "value": value,
                "name": self._names.get(value) or ("background" if value == ordered[0] else f"class {value}"),
                "color": self._colors[value],
            }
            for value in ordered
        ]


def _next_color(index: int) -> str:
    if index < len(COLORS):
        return COLORS[index]
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.7, 0.9)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


@dataclass
class ReadPair:
    """A pair that was read and whose parts fit together: pixels, and in `folder` the files to store."""

    pair: Pair
    folder: Path
    image_path: Path
    image: Image
    mask: Mask
    signature: NDArray[np.float16]
    labels_path: Path | None  # None for a mask in colours: which value a colour has only the class table knows


def read_pair(pair: Pair, archive: SafeArchive, folder: Path) -> ReadPair:
    """Raises ImageError or ArchiveError with `file` set to the culprit. Nothing of it depends on other pairs."""
    image_path, mask_path = folder / f"image{_suffix(pair.image[0])}", folder / f"mask{_suffix(pair.mask)}"
    image_file = pair.image[0].rpartition("/")[0] if pair.is_series else pair.image[0]
    if pair.is_series:
        image_path = _extract_series(pair, archive, folder)
    else:
        archive.extract(pair.image[0], image_path)
    archive.extract(pair.mask, mask_path)
    image = _read(read_image, image_path, image_file)
    mask = _read(lambda path: read_mask(path, like=image), mask_path, pair.mask)
    labels_path = None
    try:
        check_pair(image, mask)
        if mask.coding == "values":
            labels_path = write_label_map(mask.values, image, folder)
    except ImageError as error:
        error.file = pair.mask if error.code == "value_range" else f"{pair.image[0]} and {pair.mask}"
        raise
    seen = signature(image)
    return ReadPair(pair, folder, image_path, image, mask, seen, labels_path)


@dataclass
class KnownSample:
    """A good pair whose values are known to the class table, ready to be stored. It holds no pixels any more."""

    sample: CheckedSample
    thumbnail: bytes
    files: PairFiles | None  # None: image and mask are stored already


@dataclass
class PairFiles:
    """The files of a pair, in a folder of their own."""

    folder: Path
    image: Path
    labels: Path


def know_pair(read: ReadPair, classes: ClassTable, builders: dict[int, FingerprintBuilder]) -> KnownSample:
    """Raises ImageError with `file` set. Pairs come here in order: it decides which colours and values classes get."""
    image, mask, pair = read.image, read.mask, read.pair
    try:
        values, counts = classes.values_of(mask)
        labels_path = read.labels_path or write_label_map(values, image, read.folder)
    except ImageError as error:
        alone = error.code in ("too_many_values", "value_range")
        error.file = pair.mask if alone else f"{pair.image[0]} and {pair.mask}"
        raise
    builders[image.dimensions].add(image, values, counts)  # last: what is refused must not be counted
    issues = []
    if mask.lossy:
        text = "The mask is a JPEG, which blurs the borders of classes; values were set to 0 or 255. Save masks as PNG."
        issues.append(Issue("warning", "lossy_mask", pair.mask, text))
    sample = CheckedSample(
        name=pair.name[:300],  # as long as the column
        file=pair.image[0],
        group=patient_group(image, pair.name),
        shape=image.shape,
        spacing=[float(step) for step in image.spacing] if image.spacing else None,
        image=storage.StoredObject("", 0, ""),
        mask=storage.StoredObject("", 0, ""),
        signature=read.signature,
        issues=issues,
    )
    thumbnail = thumbnail_jpeg(image, values, classes.colors())
    return KnownSample(sample, thumbnail, PairFiles(read.folder, read.image_path, labels_path))


def mixed_dimensions(wanted: int) -> ImageError:
    """Of a picture among volumes or the other way round."""
    kinds = ("a volume", "pictures") if wanted == 2 else ("a picture", "volumes")
    return ImageError("mixed_dimensions", f"It is {kinds[0]} among {kinds[1]}.", "Put it into a dataset of its own.")


def store_sample(sample: CheckedSample, files: PairFiles, prefix: str) -> None:
    """Store image and mask."""
    sample.image = storage.store_file(f"{prefix}/image{_suffix(files.image.name)}", files.image)
    sample.mask = storage.store_file(f"{prefix}/mask{_suffix(files.labels.name)}", files.labels)


def _suffix(name: str) -> str:
    """The ending of a file as an object's key may have it: none that the user made up."""
    return suffix if (suffix := suffix_of(name)) in FORMATS else ".dcm"


def _read(read: Any, path: Path, file: str) -> Any:
    try:
        return read(path)
    except ImageError as error:
        error.file = file
        raise


def _extract_series(pair: Pair, archive: SafeArchive, folder: Path) -> Path:
    """All slices of a series as one ZIP, which ml_core.io reads as a volume."""
    target = folder / "image.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as series:
        for index, name in enumerate(pair.image):
            part = folder / "slice"
            archive.extract(name, part)
            # No time of day: the same slices give the same bytes, also in a later version.
            entry = zipfile.ZipInfo(f"{index:05d}.dcm")
            entry.compress_type = zipfile.ZIP_DEFLATED
            with part.open("rb") as source, series.open(entry, "w") as out:
                shutil.copyfileobj(source, out)
            part.unlink()
    return target


def patient_group(image: Image, name: str) -> str:
    """What must stay on one side of a split: a salted hash of the DICOM PatientID (which goes no further), or the name's `sub-X`."""
    if image.patient:
        return "p-" + salted_hmac("datasets.patient", image.patient, algorithm="sha256").hexdigest()[:24]
    return group_of_name(name)


def thumbnail_jpeg(image: Image, values: NDArray[Any], colors: dict[int, str]) -> bytes:
    """The image with its mask over it; of a volume the slice with most foreground."""
    background = min(colors)
    index = None
    if image.dimensions == 3:
        index = int((values != background).reshape(len(values), -1).sum(axis=1).argmax())
    pixels = display_slice(image, index)
    labels = to_screen(values if index is None else values[index], oriented=is_oriented(image))
    step = max(1, max(pixels.shape[:2]) // THUMBNAIL_SIDE)
    pixels, labels = pixels[::step, ::step], labels[::step, ::step]
    ordered = sorted(colors)
    shown = overlay(pixels, np.searchsorted(ordered, labels), [colors[value] for value in ordered], 0.45)
    picture = PILImage.fromarray(shown)
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
