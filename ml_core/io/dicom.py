"""Read one DICOM file of one or many frames, with pydicom and the decoders that `ml_core.io.codecs` names."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset, read_partial
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.tag import BaseTag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from ml_core.errors import ImageError
from ml_core.io.codecs import stored_pixels
from ml_core.io.deflated import Inflated
from ml_core.io.geometry import Plane, frame_planes, stack
from ml_core.io.grid import oriented_grid, stored_slices, to_canonical
from ml_core.io.image import (
    LIMITS,
    Coding,
    DicomSource,
    Grid,
    Image,
    Mask,
    Notice,
    check_finite,
    check_size,
    decoding,
    rescale,
    supported,
)
from ml_core.io.masks import as_labels, from_rgb, snap

WHAT, CURE = (
    "DICOM file",
    "Export it again, uncompressed if possible, and check that it was copied completely.",
)

_PIXELS = (0x7FE00010, 0x7FE00008, 0x7FE00009)

# pydicom's warnings quote the values they complain about. Those can be patient data, which must not reach a log.
pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE


@dataclass(frozen=True)
class Slices:
    """Decoded slices, sorted by their position in space, with the geometry and header that belong to them."""

    pixels: NDArray[Any]
    """(C, H, W) for one slice or (C, D, H, W) for a volume."""
    spacing: tuple[float, ...] | None
    """mm per spatial axis in array order; None when unknown."""
    affine: NDArray[np.float64] | None
    """4x4, stored voxel (x along a row, y, slice) → RAS+ mm; None when unknown."""
    header: Dataset
    """The header of the file; for a series, the header of one of its files."""
    source: DicomSource
    """The DICOM instance of each slice, in the order of `pixels`."""
    notices: tuple[Notice, ...] = ()
    """What was guessed or left out."""


def read_image(path: Path) -> Image:
    """Read one file. One frame gives a 2D image, several give a volume sorted along the normal. Raises ImageError."""
    with decoding(WHAT, CURE), path.open("rb") as file:
        slices = sorted_frames(open_dataset(file, pixels=True), raw=False)
    return to_image(slices)


def read_mask(path: Path) -> Mask:
    """Read one label map as its stored values, neither rescaled nor inverted. Raises ImageError."""
    with decoding(WHAT, CURE), path.open("rb") as file:
        slices = sorted_frames(open_dataset(file, pixels=True), raw=True)
    return to_mask(slices)


def open_dataset(file: BinaryIO, *, pixels: bool) -> Dataset:
    """Parse a DICOM file, with or without preamble, and check that it is an image of a permitted size.

    Without `pixels` only the header is read. Raises ImageError.
    """
    preamble = file.read(132)[128:] == b"DICM"
    meta = Dataset()
    if preamble:
        meta = read_dataset(file, False, True, stop_when=_guard(lambda tag: tag >> 16 != 2))
    else:
        file.seek(0)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        dataset = _open_deflated(file, meta, pixels=pixels)
    else:
        _check_start(file)
        file.seek(0)
        dataset = read_partial(file, stop_when=_header_guard(pixels=pixels), force=not preamble)
    if not preamble:
        implicit, little = dataset.original_encoding
        if "SOPClassUID" not in dataset and "Rows" not in dataset:
            raise ImageError("unreadable", "The file is not DICOM, or it is damaged.", CURE)
        dataset.file_meta = FileMetaDataset()
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    if dataset.get("Modality") == "SEG" or "SegmentSequence" in dataset:
        raise ImageError(
            "dicom_seg",
            "DICOM segmentation objects (SEG) are not supported.",
            "Convert it to NIfTI or to PNG label maps, for example with dcmqi's segimage2itkimage.",
        )
    if "Rows" not in dataset or "Columns" not in dataset:
        raise _no_pixels()
    frames, size = frame_count(dataset), (int(dataset.Rows), int(dataset.Columns))
    check_size(size if frames == 1 else (frames, *size))
    if pixels and not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise _no_pixels()
    return dataset


def _check_start(file: BinaryIO) -> None:
    """Refuse a file that continues with group 0. That group holds commands, which no image file contains.

    A file of zeros would look like millions of commands.
    """
    if file.read(2) == b"\0\0":
        raise ImageError("unreadable", "The file is not DICOM, or it is damaged.", CURE)


def _open_deflated(file: BinaryIO, meta: Dataset, *, pixels: bool) -> Dataset:
    """Parse a file in which all that follows the meta information is compressed.

    pydicom would expand all of it, without a limit.
    """
    length = meta.get("FileMetaInformationGroupLength")
    if length is not None:
        # The element of this length takes the 12 bytes behind the preamble.
        file.seek(144 + int(length))
    inflated = Inflated(file, LIMITS.deflated_header_bytes)
    content = cast(BinaryIO, inflated)
    _check_start(content)
    content.seek(0)
    dataset = read_dataset(content, False, True, stop_when=_header_guard(pixels=False))
    if pixels and "Rows" in dataset and "Columns" in dataset:
        # The header bounds the size of the pixels, and check_size bounds what a header may say.
        frames, size = frame_count(dataset), (int(dataset.Rows), int(dataset.Columns))
        check_size(size if frames == 1 else (frames, *size))
        samples, bits = int(dataset.get("SamplesPerPixel") or 1), int(dataset.get("BitsAllocated") or 8)
        inflated.max_bytes += min(frames * size[0] * size[1] * samples * bits // 8, LIMITS.volume_bytes)
        content.seek(0)
        dataset = read_dataset(content, False, True, stop_when=_header_guard(pixels=True))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def _header_guard(*, pixels: bool) -> Callable[[BaseTag, str | None, int], bool]:
    return _guard(lambda tag: not pixels and tag in _PIXELS)


def _guard(ends: Callable[[BaseTag], bool]) -> Callable[[BaseTag, str | None, int], bool]:
    """Return the function that pydicom asks at every tag whether to stop: it stops where `ends(tag)` is true.

    It raises ImageError if the header has too many elements, as that of a damaged file can have.
    """
    count = 0

    def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal count
        count += 1
        if count > LIMITS.dicom_elements:
            raise ImageError("unreadable", "The DICOM header has no end: the file is damaged.", CURE)
        return ends(tag)

    return stop


def frame_count(dataset: Dataset) -> int:
    """Return the number of frames in a file; 1 if the header gives no number."""
    return max(1, int(dataset.get("NumberOfFrames") or 1))


def decode(dataset: Dataset, *, raw: bool) -> NDArray[Any]:
    """Decode the pixels to (C, H, W), or (C, F, H, W) for F frames, in the order of the file. Raises ImageError.

    With `raw` (for masks) grey values and palette indices stay as stored. Otherwise grey values are rescaled to the
    modality's units, MONOCHROME1 is inverted and palettes are expanded. YBR is always converted to RGB.
    """
    colour = str(dataset.get("PhotometricInterpretation", "MONOCHROME2")).strip()
    samples = int(dataset.get("SamplesPerPixel") or 1)
    known = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR") if samples == 1 else ("RGB", "YBR_")
    if samples not in (1, 3) or not colour.startswith(known):
        raise ImageError(
            "unsupported_pixels",
            f"The DICOM colour type {colour} (samples per pixel: {samples}) is not supported.",
            "Export it as grey or RGB.",
        )
    _check_streams(dataset)
    array = stored_pixels(dataset)
    if array.shape[:1] == (1,) and array.ndim == (3 if samples == 1 else 4):
        array = array[0]
    if samples == 3:
        return np.moveaxis(array, -1, 0)
    if raw:
        return array[None]
    if colour == "PALETTE COLOR":
        array = apply_color_lut(array, dataset)
        return np.moveaxis((array >> 8).astype(np.uint8) if array.dtype == np.uint16 else array, -1, 0)
    return _modality_values(array, dataset, inverted=colour == "MONOCHROME1")[None]


def to_image(slices: Slices) -> Image:
    """Make an Image of decoded slices. A volume of known geometry is turned to RAS+. Raises ImageError."""
    array, spacing, affine, source = supported(slices.pixels), slices.spacing, slices.affine, slices.source
    check_finite(array)
    grid = Grid(tuple(array.shape[1:]), affine)
    if array.ndim == 4 and affine is not None:
        grid, spacing, affine = oriented_grid(array.shape[:0:-1], affine)
        array = to_canonical(array.transpose(), grid)
        axis, backwards = stored_slices(grid)
        order = slice(None, None, -1 if backwards else 1)
        source = replace(source, axis=axis, instances=source.instances[order], frames=source.frames[order])
    patient, modality = (_text(slices.header, name) or None for name in ("PatientID", "Modality"))
    grid = replace(grid, source=source)
    return Image(array, spacing, affine, "dicom", modality, patient, grid, notices=slices.notices)


def to_mask(slices: Slices) -> Mask:
    """Make a Mask of slices that were decoded raw. A volume of known geometry is turned to RAS+. Raises ImageError."""
    pixels, spacing, affine = slices.pixels, slices.spacing, slices.affine
    coding: Coding = "values"
    lossy = _text(slices.header, "LossyImageCompression") == "01"
    if pixels.shape[0] == 3:
        interleaved = np.moveaxis(pixels, 0, -1)
        labels, coding = (snap(interleaved), coding) if lossy else from_rgb(interleaved)
    else:
        labels = snap(pixels[0]) if lossy else as_labels(pixels[0])
    if labels.ndim == 3 and affine is not None:
        grid, spacing, affine = oriented_grid(labels.shape[::-1], affine)
        labels = to_canonical(labels.transpose(), grid)
    return Mask(labels, coding, None, lossy, spacing, affine, notices=slices.notices)


def sorted_frames(dataset: Dataset, *, raw: bool) -> Slices:
    """Decode the frames of one file and sort them along their normal. Raises ImageError."""
    count = frame_count(dataset)
    planes = frame_planes(dataset, count)
    found = stack(planes, [f"frame {i + 1}" for i in range(count)])
    pixels = decode(dataset, raw=raw)
    if found.order != list(range(count)):
        pixels = pixels[:, found.order]
    source = source_of([dataset], [index + 1 for index in found.order])
    notices = (*burned_in([dataset]), *found.notices)
    return Slices(pixels, found.spacing, found.affine, dataset, source, notices)


def burned_in(headers: Sequence[Dataset]) -> list[Notice]:
    """Return a notice if a header says that there is text in the pixels."""
    if not any(_text(header, "BurnedInAnnotation").upper() == "YES" for header in headers):
        return []
    text = "The DICOM header says that text is burned into the pixels (BurnedInAnnotation). It may name the patient."
    return [Notice("burned_in", text)]


def source_of(headers: Sequence[Dataset], frames: Sequence[int]) -> DicomSource:
    """Describe the origin of sorted slices: one header with many frame numbers, or many headers with one."""
    first = headers[0]
    return DicomSource(
        instances=tuple(_text(header, "SOPInstanceUID") for header in headers) * len(frames),
        frames=tuple(frames) * len(headers),
        sop_class=_text(first, "SOPClassUID"),
        study=_text(first, "StudyInstanceUID"),
        series=_text(first, "SeriesInstanceUID"),
        frame_of_reference=_text(first, "FrameOfReferenceUID"),
    )


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()


def single_plane(dataset: Dataset) -> Plane:
    """Return the position, orientation and spacing of the first frame in a file of classic or enhanced DICOM."""
    return frame_planes(dataset, 1)[0]


def _modality_values(array: NDArray[Any], dataset: Dataset, *, inverted: bool) -> NDArray[Any]:
    """Convert stored values to the modality's units, such as Hounsfield units."""
    if inverted:
        # Values are inverted over the whole stored range, not over the minimum and maximum of this file, so that all
        # files of a study stay comparable.
        if array.dtype.kind == "f":
            array = -array
        elif array.dtype.kind == "i":
            array = ~array
        else:
            array = array ^ array.dtype.type((1 << int(dataset.BitsStored)) - 1)
    if "ModalityLUTSequence" in dataset:
        return supported(apply_modality_lut(array, dataset))
    scales = [_scale(dataset, index) for index in range(frame_count(dataset))]
    if len(set(scales)) == 1:
        return rescale(array, *scales[0])
    return np.stack([rescale(frame, *scale).astype(np.float32) for frame, scale in zip(array, scales, strict=True)])


def _scale(dataset: Dataset, index: int) -> tuple[float, float]:
    """Return the rescale slope and intercept of one frame.

    Enhanced files keep them in functional groups, other files at the top level of the header.
    """
    for group, place in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        items = dataset.get(group) or []
        inner = items[place].get("PixelValueTransformationSequence") if len(items) > place else None
        if inner and inner[0].get("RescaleSlope") is not None:
            return float(inner[0].RescaleSlope), float(inner[0].get("RescaleIntercept") or 0)
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    return (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))


def _check_streams(dataset: Dataset) -> None:
    """Refuse compressed frames that end early, or whose size differs from the size in the DICOM header.

    The size check matters because a small size in the header could hide a huge frame. The check for the end matters
    because decoders invent the missing part of a truncated JPEG, or search for it for seconds.
    """
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    expected = (int(dataset.Rows), int(dataset.Columns))
    for frame in generate_frames(dataset.PixelData, number_of_frames=frame_count(dataset)):
        _check_boxes(frame)
        size = _stream_size(frame)
        # A JPEG starts with the marker FFD8 and ends with FFD9.
        if frame.startswith(b"\xff\xd8") and (size is None or b"\xff\xd9" not in frame):
            raise ImageError("unreadable", "The compressed pixels are damaged or end too early (truncated).", CURE)
        if size is not None and size != expected:
            raise ImageError(
                "unreadable",
                f"The compressed pixels are {size[0]} x {size[1]} and the header says {expected[0]} x {expected[1]}.",
                CURE,
            )


def _check_boxes(frame: bytes) -> None:
    """Refuse a JPEG 2000 file (JP2) with a box of length 0: pydicom would read the same box for ever."""
    if not frame.startswith(b"\0\0\0\x0cjP  "):
        return
    at = 12
    while at < len(frame) and frame[at + 4 : at + 8] != b"jp2c":
        length = int.from_bytes(frame[at : at + 4], "big")
        if length == 0:
            raise ImageError("unreadable", "The header of the compressed pixels is damaged.", CURE)
        at += length


def _stream_size(frame: bytes) -> tuple[int, int] | None:
    """Read (rows, columns) from a JPEG, JPEG-LS or JPEG 2000 stream; None if it gives no size, such as RLE."""
    at = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if at >= 0:
        width, height, left, top = struct.unpack(">4I", frame[at + 8 : at + 24])
        return height - top, width - left
    if frame[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        # Any number of fill bytes FF may stand before a marker.
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            height, width = struct.unpack(">HH", frame[at + 5 : at + 9])
            return height, width
        at += 2 + int(struct.unpack(">H", frame[at + 2 : at + 4])[0])
    return None


def _no_pixels() -> ImageError:
    return ImageError(
        "no_pixels",
        "The DICOM file holds no pixels (it may be a report, a plan or a directory).",
        "Give the image files of the series only.",
    )
