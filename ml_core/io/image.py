"""What every reader returns, the limits it keeps, and the number types it allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ml_core.errors import ImageError

Family = Literal["raster", "nifti", "dicom"]
Coding = Literal["values", "rgb"]

_KEPT_DTYPES = tuple(np.dtype(name) for name in ("uint8", "uint16", "int16", "int32", "float32"))


@dataclass(frozen=True)
class Limits:
    """Bounds that are checked on headers, before any pixel is decoded."""

    pixels_2d: int = 200_000_000
    """Pixels of one 2D image."""
    voxels: int = 1_000_000_000
    """Voxels of one volume."""
    volume_bytes: int = 4 * 1024**3
    """Bytes of one NIfTI file's pixels as stored, expanded."""
    dicom_elements: int = 20_000
    """Elements at the top level of one DICOM file. Parsing takes time and memory with each, and zeros are such."""


LIMITS = Limits()


@dataclass(frozen=True)
class DicomSource:
    """The DICOM objects that an image was read from, for objects that refer to them (segmentations, contours).

    UIDs identify a study: they belong into files that go back to where the image came from, and nowhere else.
    """

    instances: tuple[str, ...]
    """SOPInstanceUID of each slice of the array, in the array's order along `axis`; of a picture the one. "" where there is none."""
    frames: tuple[int, ...]
    """For each of these slices the number of its frame in its instance, from 1."""
    sop_class: str
    """SOPClassUID. This and the following ones are "" where the header is silent."""
    study: str
    """StudyInstanceUID."""
    series: str
    """SeriesInstanceUID."""
    frame_of_reference: str
    """FrameOfReferenceUID."""
    axis: int = 0
    """Spatial axis of the array across the slices: 0 is D. A sagittal series, turned to RAS+, has its slices along W (2)."""


@dataclass(frozen=True)
class Grid:
    """How the pixels lie in the file: what is needed to write a label map back on the file's own grid."""

    shape: tuple[int, ...]
    """NIfTI and DICOM volumes: (X, Y, Z, ...) as stored, with trailing 1s; else the image's spatial shape."""
    affine: NDArray[np.float64] | None = None
    """4x4, stored voxel → RAS+ mm; None when unknown."""
    orientation: NDArray[np.float64] | None = None
    """nibabel's 3x2 orientation of the stored axes. None: the array is in stored order."""
    codes: tuple[int, int] = (1, 1)
    """NIfTI: sform and qform code of the header."""
    source: DicomSource | None = None
    """DICOM: where the slices came from."""


@dataclass(frozen=True)
class Image:
    """One 2D image or one volume.

    NIfTI and DICOM volumes are turned to their closest RAS+ axes. Raster files, single DICOM slices, and volumes
    without known spacing keep their own rows and columns.
    """

    array: NDArray[Any]
    """(C, H, W), or (C, D, H, W) for a volume; C is 1 or 3. uint8, uint16, int16, int32 or float32, finite.

    May be a read-only view: copy before writing into it."""
    spacing: tuple[float, ...] | None
    """mm per spatial axis in array order; None when unknown."""
    affine: NDArray[np.float64] | None
    """4x4, voxel (x along W, y along H, z along D) → RAS+ mm; None when unknown."""
    family: Family
    modality: str | None
    """DICOM Modality; None elsewhere."""
    patient: str | None
    """Raw DICOM PatientID, for grouping only: hash it, never store it."""
    grid: Grid

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape, (H, W) or (D, H, W)."""
        return tuple(self.array.shape[1:])

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return self.array.ndim - 1

    @property
    def channels(self) -> int:
        """1 or 3."""
        return int(self.array.shape[0])


@dataclass(frozen=True)
class Mask:
    """One label map, on the same axes as an Image of the same file would be."""

    values: NDArray[Any]
    """Integers, (H, W) or (D, H, W); for coding "rgb" r<<16 | g<<8 | b."""
    coding: Coding
    palette: dict[int, str] | None
    """Value → "#rrggbb" for the values present in a palette PNG."""
    lossy: bool
    """Came from JPEG; the values were snapped to 0 and 255."""
    spacing: tuple[float, ...] | None
    affine: NDArray[np.float64] | None


@contextmanager
def decoding(what: str, cure: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an ImageError.

    Catches every Exception on purpose: a damaged file makes decoders raise nearly anything. The decoder's own words
    stay in the chain (`__cause__`) only, since they can hold paths and patient data.
    """
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(
            "too_large",
            f"This {what} does not fit into the memory of this machine.",
            "Crop it, scale it down or split it.",
        ) from error
    except Exception as error:
        words = str(error).lower()
        early = isinstance(error, EOFError) or any(
            sign in words for sign in ("truncated", "end of file", "end-of-stream", "expected", "eof", "not enough")
        )
        fault = "it ends too early (truncated)" if early else "its content is damaged or not of this format"
        raise ImageError("unreadable", f"This {what} cannot be decoded: {fault}.", cure) from error


def check_size(shape: Sequence[int]) -> None:
    """Refuse a spatial shape that is empty or over the limits. Call it before decoding."""
    text = " x ".join(str(n) for n in shape)
    if any(n < 1 for n in shape):
        raise ImageError("empty_image", f"The image has no pixels (its size is {text}).", "Export it again.")
    limit, unit = (LIMITS.pixels_2d, "pixels") if len(shape) == 2 else (LIMITS.voxels, "voxels")
    if prod(int(n) for n in shape) > limit:
        raise ImageError(
            "too_many_pixels",
            f"The image has {text} {unit}; at most {limit:,} are read.",
            "Cut it into tiles, crop it or scale it down.",
        )


def supported(array: NDArray[Any]) -> NDArray[Any]:
    """The array in native byte order as one of the allowed dtypes; no copy where it is one already."""
    if array.dtype.kind not in "biuf":
        raise ImageError("unsupported_pixels", f"Pixels of type {array.dtype} are not supported.", "Save real numbers.")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype in _KEPT_DTYPES:
        return array
    if array.dtype.kind in "bi" and array.dtype.itemsize == 1:
        return array.astype(np.uint8 if array.dtype.kind == "b" else np.int16)
    if array.dtype.kind in "iu":
        limits = np.iinfo(np.int32)
        if int(array.min()) >= limits.min and int(array.max()) <= limits.max:
            return array.astype(np.int32)
    with np.errstate(over="ignore"):  # an overflow becomes inf, which check_finite then reports
        return array.astype(np.float32)


def check_finite(array: NDArray[Any]) -> None:
    """Refuse NaN and infinity. min() and max() pass NaN on, so no temporary array is needed."""
    if array.dtype.kind == "f" and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise ImageError(
            "not_finite",
            "The image holds NaN or infinite values.",
            "Replace them by a number, such as the background value, and save it again.",
        )


def rescale(array: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    """slope * array + intercept, in int16 or int32 where that is exact, else in float32."""
    if slope == 1 and intercept == 0:
        return array
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise ImageError(
            "bad_rescale",
            f"The rescale slope {slope} or intercept {intercept} is unusable.",
            "Export it again.",
        )
    small = array.dtype.kind in "iu" and array.dtype.itemsize <= 2
    if small and slope == int(slope) and intercept == int(intercept) and abs(slope) * 65536 + abs(intercept) < 2**31:
        exact: NDArray[np.int32] = array.astype(np.int32)
        exact *= int(slope)
        exact += int(intercept)
        limits = np.iinfo(np.int16)
        fits = int(exact.min()) >= limits.min and int(exact.max()) <= limits.max
        return exact.astype(np.int16) if fits else exact
    real: NDArray[Any] = array.astype(np.float32 if small else np.float64)
    real *= slope
    real += intercept
    with np.errstate(over="ignore"):
        return real.astype(np.float32, copy=False)
