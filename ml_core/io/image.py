"""The types that every reader returns, the limits that it checks, and the dtypes that it may return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ml_core.errors import ImageError

Family = Literal["raster", "nifti", "dicom"]
Coding = Literal["values", "rgb"]

# Numbers of channels of which one can stand for the other: grey is repeated for colour, and colour becomes its brightness.
GREY_OR_COLOUR = frozenset({1, 3})
_KEPT_DTYPES = tuple(np.dtype(name) for name in ("uint8", "uint16", "int16", "int32", "float32"))


@dataclass(frozen=True)
class Limits:
    """Limits that readers check against the header, before they decode any pixel."""

    pixels_2d: int = 200_000_000
    """Pixels of one 2D image."""
    voxels: int = 1_000_000_000
    """Voxels of one volume."""
    volume_bytes: int = 4 * 1024**3
    """Expanded bytes of the pixels of one NIfTI file, in the dtype that the file stores."""
    channels: int = 16
    """Channels of one image."""
    tiff_pages: int = 20_000
    """Pages of one TIFF, previews included. Each costs time and memory before anything is decoded."""
    deflated_header_bytes: int = 16 * 1024**2
    """Expanded bytes of the header of a deflated DICOM file, and of all that lies behind its pixels."""
    dicom_elements: int = 20_000
    """Elements at the top level of one DICOM file.

    Each costs time and memory, and a file of zeros parses as millions.
    """


LIMITS = Limits()


@dataclass(frozen=True)
class DicomSource:
    """The DICOM instances that an image was read from. New objects (segmentations, contours) refer to them.

    UIDs identify a study. They belong only into files that go back to where the image came from.
    """

    instances: tuple[str, ...]
    """SOPInstanceUID of each slice in array order along `axis`, or of the 2D image; "" if the header gives none."""
    frames: tuple[int, ...]
    """For each slice, the number of its frame within its instance. Frames count from 1."""
    sop_class: str
    """SOPClassUID. This UID and the following ones are "" if the header does not give them."""
    study: str
    """StudyInstanceUID."""
    series: str
    """SeriesInstanceUID."""
    frame_of_reference: str
    """FrameOfReferenceUID."""
    axis: int = 0
    """The spatial array axis across the slices: 0 = D, 1 = H, 2 = W.

    A sagittal series turned to RAS+ has them along W.
    """


@dataclass(frozen=True)
class Grid:
    """How the pixels lie in the file. A label map is written back on this grid."""

    shape: tuple[int, ...]
    """For NIfTI and DICOM volumes (X, Y, Z, ...) as stored, with trailing 1s; otherwise the image's spatial shape."""
    affine: NDArray[np.float64] | None = None
    """4x4, stored voxel → RAS+ mm; None when unknown."""
    orientation: NDArray[np.float64] | None = None
    """nibabel's 3x2 orientation of the stored axes; None if the image keeps the stored order."""
    second: NDArray[np.float64] | None = None
    """4x4, stored voxel → RAS+ mm by the qform of a NIfTI header whose sform, the `affine`, says otherwise; else None."""
    header: Mapping[str, NDArray[Any]] | None = None
    """The fields of a NIfTI header that place it in space, as they are stored: both transforms with their codes, and
    the units. A label map gets the same ones. None for other formats."""
    source: DicomSource | None = None
    """The DICOM instances that the slices came from; None for other formats."""


@dataclass(frozen=True)
class Notice:
    """What a reader guessed, left out or found strange in a file that it could read."""

    code: str
    text: str
    """Sentences for the user. They do not name the file itself, but name the files of a series."""


@dataclass(frozen=True)
class Image:
    """One 2D image or one volume.

    NIfTI and DICOM volumes are turned to their closest RAS+ axes. Raster files, single DICOM slices, and volumes
    without known spacing keep their own rows and columns.
    """

    array: NDArray[Any]
    """(C, H, W), or (C, D, H, W) for a volume; C is 1 to 16. uint8, uint16, int16, int32 or float32, all values finite.

    It may be a read-only view, so copy it before writing into it."""
    spacing: tuple[float, ...] | None
    """mm per spatial axis in array order; None when unknown."""
    affine: NDArray[np.float64] | None
    """4x4, voxel (x along W, y along H, z along D) → RAS+ mm; None when unknown."""
    family: Family
    modality: str | None
    """DICOM Modality, such as "CT"; None for other formats."""
    patient: str | None
    """The raw DICOM PatientID; None for other formats. It serves to group images only: store its hash, never the ID."""
    grid: Grid
    """How the pixels lie in the file."""
    notices: tuple[Notice, ...] = ()
    """What the user should know of how the file was read."""

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
        """1 to 16. Three channels of 8-bit raster images are red, green and blue."""
        return int(self.array.shape[0])


@dataclass(frozen=True)
class Mask:
    """One label map, on the axes that an Image of the same file would have."""

    values: NDArray[Any]
    """Integers, (H, W) or (D, H, W). For coding "rgb" a value is r<<16 | g<<8 | b."""
    coding: Coding
    """Whether the values are the file's numbers ("values") or packed colours ("rgb")."""
    palette: dict[int, str] | None
    """Value → "#rrggbb" for the values that occur in a palette PNG; None for other files."""
    lossy: bool
    """The file was compressed with loss (JPEG). Black and white were restored: its values are 0 and 255."""
    spacing: tuple[float, ...] | None
    """mm per spatial axis in array order; None when unknown."""
    affine: NDArray[np.float64] | None
    """4x4, voxel (x along W, y along H, z along D) → RAS+ mm; None when unknown."""
    has_two_transforms: bool = False
    """The sform and the qform of its NIfTI header differ; `affine` is the sform."""
    notices: tuple[Notice, ...] = ()
    """What the user should know of how the file was read."""


@contextmanager
def decoding(what: str, cure: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an ImageError about `what`.

    Every Exception is caught on purpose, because decoders raise nearly anything on a damaged file. The decoder's own
    message stays in `__cause__` only, since it can hold paths and patient data.
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
    """Raise ImageError empty_image or too_many_pixels if a spatial shape is empty or over the limits.

    Call this before decoding, so that a small file cannot fill the memory.
    """
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
    """Convert an array to native byte order and one of the allowed dtypes, without a copy if it has one already.

    Raises ImageError unsupported_pixels for values that are not real numbers, and value_range for those that do not fit.
    """
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
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    if not np.isfinite(single.min() + single.max()) and np.isfinite(array).all():
        raise ImageError(
            "value_range",
            f"The image has values from {array.min():.3g} to {array.max():.3g}, which 32-bit numbers cannot hold.",
            "Scale them down, and save it again.",
        )
    return single


def check_finite(array: NDArray[Any]) -> None:
    """Raise ImageError not_finite if an array holds NaN or infinity."""
    # min() and max() of an array with NaN are NaN, so that two numbers tell, without a temporary array of its size.
    if array.dtype.kind == "f" and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise ImageError(
            "not_finite",
            "The image holds NaN or infinite values.",
            "Replace them by a number, such as the background value, and save it again.",
        )


def rescale(array: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    """Return slope * array + intercept, in int16 or int32 if that is exact, otherwise in float32.

    Raises ImageError bad_rescale if the slope is 0 or either number is not finite.
    """
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
