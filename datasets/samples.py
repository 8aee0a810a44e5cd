"""One image with its mask, on its way into a dataset: it is read, checked, given a thumbnail, and stored."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from django.utils.crypto import salted_hmac
from numpy.typing import NDArray
from PIL import Image as PILImage

from datasets.display import overlay
from medseg_site.shared.storage import objects as storage
from ml_core.dataset.checks import DatasetCheck, ReadPair, naming, read_pair
from ml_core.dataset.classes import ClassTable
from ml_core.dataset.pairing import Pair
from ml_core.dataset.patients import group_of_name
from ml_core.io import Image, display_slice, is_oriented, series, to_screen, write_label_map
from ml_core.io.containers import SafeArchive
from ml_core.io.content import suffix_by_content
from ml_core.io.formats import FORMATS, suffix_of

THUMBNAIL_SIDE = 256


@dataclass(slots=True)
class CheckedSample:
    """A pair that passed the check, with the facts that its row of `samples` needs."""

    name: str
    # The path of the image in the archive, or the folder of a DICOM series.
    file: str
    group: str
    shape: tuple[int, ...]
    spacing: list[float] | None
    image: storage.StoredObject
    mask: storage.StoredObject
    # For the comparison in ml_core.dataset.near_duplicates.
    signature: NDArray[np.float16]
    # ThumbnailWriter sets these three. Offset and size are in bytes.
    thumbnail_key: str = ""
    thumbnail_offset: int = 0
    thumbnail_size: int = 0

    @property
    def content(self) -> str:
        """The SHA-256 of the image file, or "" until it is stored. Images with the same bytes have the same one."""
        return self.image.sha256


@dataclass
class UnpackedPair:
    """A pair that was read and whose image and mask fit together. `folder` holds the files to store."""

    pair: Pair
    folder: Path
    image_path: Path
    read: ReadPair
    # None for a mask in colours: only the class table knows which value a colour has.
    labels_path: Path | None


def unpack_pair(pair: Pair, archive: SafeArchive, folder: Path) -> UnpackedPair:
    """Extract and read one pair of the archive. It depends on no other pair, so pairs may be read in any order.

    Raises ImageError or ArchiveError, with `file` set to the file at fault.
    """
    if pair.is_series:
        image_path, image_file = folder / "image.zip", pair.image[0].rpartition("/")[0]
        series.pack(archive, pair.image, image_path)
    else:
        image_path, image_file = _extract(archive, pair.image[0], folder, "image"), pair.image[0]
    mask_path = _extract(archive, pair.mask, folder, "mask")
    read = read_pair(image_path, mask_path, image_file=image_file, mask_file=pair.mask)
    labels_path = None
    if read.mask.coding == "values":
        with naming(pair.mask):
            labels_path = write_label_map(read.mask.values, read.image, folder)
    return UnpackedPair(pair, folder, image_path, read, labels_path)


@dataclass
class KnownSample:
    """A good pair whose mask values the class table knows. It is ready to be stored and holds no pixels any more."""

    sample: CheckedSample
    thumbnail: bytes
    # None when image and mask are in storage already.
    files: PairFiles | None


@dataclass
class PairFiles:
    """The files of one pair. No other pair uses their folder."""

    folder: Path
    image: Path
    labels: Path


def know_pair(unpacked: UnpackedPair, check: DatasetCheck) -> KnownSample:
    """Enter a pair into the class table and make its thumbnail. Pairs have to come in order (see DatasetCheck.add).

    Raises ImageError when the pair does not fit those before it.
    """
    pair, read, image = unpacked.pair, unpacked.read, unpacked.read.image
    values = check.add(read)
    labels_path = unpacked.labels_path
    # The numbers of objects are stored as they are; everything else is stored in label values.
    is_relabelled = values is not read.mask.values and not check.classes.decision.reading.objects
    if labels_path is None or is_relabelled:
        labels_path = write_label_map(values, image, unpacked.folder)
    sample = CheckedSample(
        # The column `samples.name` has room for so many characters.
        name=pair.name[:300],
        file=read.image_file,
        group=patient_group(image, pair.name),
        shape=image.shape,
        spacing=[float(step) for step in image.spacing] if image.spacing else None,
        image=storage.StoredObject("", 0, ""),
        mask=storage.StoredObject("", 0, ""),
        signature=read.signature,
    )
    thumbnail = thumbnail_jpeg(image, values, check.classes)
    return KnownSample(sample, thumbnail, PairFiles(unpacked.folder, unpacked.image_path, labels_path))


def store_sample(sample: CheckedSample, files: PairFiles, prefix: str) -> None:
    """Store image and mask below `prefix`, and note their keys and checksums in `sample`."""
    sample.image = storage.store_file(f"{prefix}/image{_suffix(files.image.name)}", files.image)
    sample.mask = storage.store_file(f"{prefix}/mask{_suffix(files.labels.name)}", files.labels)


def _extract(archive: SafeArchive, name: str, folder: Path, what: str) -> Path:
    """Extract a member of the archive to a file called `what`. Returns the path of the file.

    The file gets the ending of the member's name if that is a known format, else that of its content, else ".dcm".
    """
    target = folder / f"{what}{_suffix(name)}"
    suffix = suffix_by_content(name, archive.extract(name, target)) or ".dcm"
    return target if target.name == f"{what}{suffix}" else target.rename(folder / f"{what}{suffix}")


def _suffix(name: str) -> str:
    """Return the ending to store a file under: that of its name if it is a known format, else ".dcm".

    An object's key thus never contains text that a user chose.
    """
    return suffix if (suffix := suffix_of(name)) in FORMATS else ".dcm"


def patient_group(image: Image, name: str) -> str:
    """Return the name of the sample's group. A group of samples must stay in one part of the split.

    The name is a salted hash of the DICOM PatientID, which itself is stored nowhere, or else the `sub-X` in the name of
    the sample.
    """
    if image.patient:
        return "p-" + salted_hmac("datasets.patient", image.patient, algorithm="sha256").hexdigest()[:24]
    return group_of_name(name)


def thumbnail_jpeg(image: Image, values: NDArray[Any], classes: ClassTable) -> bytes:
    """Make a JPEG of the image with its mask over it. A volume shows the slice with the most foreground.

    `values` are label values in the shape of the image. Ignored pixels look like background. No side of the JPEG is
    longer than THUMBNAIL_SIDE pixels.
    """
    colors = classes.colors()
    foreground = [value for value in colors if value != classes.background]
    index = None
    if image.dimensions == 3:
        is_inside = np.isin(values, foreground)
        index = int(is_inside.reshape(len(values), -1).sum(axis=1).argmax())
    pixels = display_slice(image, index)
    labels = to_screen(values if index is None else values[index], oriented=is_oriented(image))
    step = max(1, max(pixels.shape[:2]) // THUMBNAIL_SIDE)
    pixels, labels = pixels[::step, ::step], labels[::step, ::step]
    positions = np.zeros(labels.shape, np.uint8)
    for number, value in enumerate(foreground, start=1):
        positions[labels == value] = number
    shown = overlay(pixels, positions, [colors[value] for value in [classes.background, *foreground]], 0.45)
    picture = PILImage.fromarray(shown)
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
