"""Read and write single-file NIfTI-1 and NIfTI-2 (.nii, .nii.gz) with nibabel.

Arrays are turned to the closest RAS+ axes (see `ml_core.io.grid`).
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import IO, Any, cast

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ml_core.errors import ImageError
from ml_core.io.grid import first_three, from_canonical, is_flat, oriented_grid, to_canonical, transforms_differ
from ml_core.io.image import LIMITS, Grid, Image, Mask, check_finite, check_size, decoding, rescale, supported
from ml_core.io.masks import as_labels

_WHAT, _CURE = "NIfTI file", "Export it again as .nii.gz, and check that it was copied completely."
_MAX_HEADER = 64 * 1024**2
# mm per unit of length, by the code in the header. Files without a code, or with one that means nothing, are in mm.
_MM = {1: 1000.0, 2: 1.0, 3: 0.001}
# The fields of a header that say where its voxels lie. No other field goes into a label map, since it may name a patient.
_PLACE = (
    *("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units", "dim_info"),
)
# A volume spanned by three unit vectors below this is flat.
_FLAT = 1e-6


@dataclass(frozen=True)
class _Stored:
    """The content of a file before its axes are turned and its values are scaled."""

    array: NDArray[Any]
    """(X, Y, Z), not yet scaled by `slope` and `intercept`."""
    slope: float
    intercept: float
    grid: Grid
    spacing: tuple[float, ...]
    """mm per axis of the canonical array."""
    affine: NDArray[np.float64]
    """4x4, canonical voxel → RAS+ mm."""


def read_image(path: Path) -> Image:
    """Read one 2D image or volume, scaled by the header's scl_slope and scl_inter. Raises ImageError.

    Metres and micrometres of the header become mm. The sform places the image, or the qform if there is no sform.
    """
    with decoding(_WHAT, _CURE):
        stored = _load(path)
        array = supported(rescale(stored.array, stored.slope, stored.intercept))
        check_finite(array)
        canonical = to_canonical(array, stored.grid)
    return Image(canonical[None], stored.spacing, stored.affine, "nifti", None, None, stored.grid)


def read_mask(path: Path, *, stored_axes: bool = False) -> Mask:
    """Read one label map; floating-point values must be whole numbers. Raises ImageError.

    With `stored_axes` the mask keeps the axes of the file, transposed to (z, y, x), and has no geometry. This fits
    masks of a PNG, because programs that draw on a PNG and save NIfTI keep the picture's rows and columns.
    """
    with decoding(_WHAT, _CURE):
        stored = _load(path)
        array = stored.array
        if (stored.slope, stored.intercept) != (1.0, 0.0):
            array = array.astype(np.float64) * stored.slope + stored.intercept
        labels = as_labels(array, negative=True)
    if stored_axes:
        plain = labels.transpose()
        return Mask(plain[0] if is_flat(stored.grid) else plain, "values", None, False, None, None)
    values, two = to_canonical(labels, stored.grid), stored.grid.second is not None
    return Mask(values, "values", None, False, stored.spacing, stored.affine, has_two_transforms=two)


def write_labels(values: NDArray[Any], grid: Grid, path: Path) -> None:
    """Write a canonical label map, (D, H, W) or (H, W) integers, as NIfTI on `grid`: its shape and its place in space.

    The grid of a NIfTI file gives both transforms, their codes and the units as that file has them. A grid without
    orientation (such as a stack of TIFF pages) is written as (x, y, z). A grid without affine gets the identity. Raises
    ImageError value_range if the values do not fit into int32.
    """
    stored = values.transpose() if grid.orientation is None else from_canonical(values, grid)
    low, high = int(values.min()), int(values.max())
    fitting = (
        d for d in (np.uint8, np.int16, np.uint16, np.int32) if np.iinfo(d).min <= low and high <= np.iinfo(d).max
    )
    dtype = next(fitting, None)
    if dtype is None:
        raise ImageError("value_range", f"Label values from {low} to {high} cannot be saved.", "Use smaller numbers.")
    # NIfTI-1 stores the size of an axis in 16 bits, so a longer axis needs NIfTI-2. So do transforms in double precision.
    is_double = grid.header is not None and grid.header["srow_x"].dtype.itemsize == 8
    kind: Any = nib.Nifti2Image if max(stored.shape) > 32767 or is_double else nib.Nifti1Image
    if grid.header is not None:
        picture = kind(np.asarray(stored, dtype=dtype), None)
        for field, value in grid.header.items():
            picture.header[field] = value
    else:
        affine = np.eye(4) if grid.affine is None else grid.affine
        picture = kind(np.asarray(stored, dtype=dtype), affine)
        picture.header.set_xyzt_units("mm")
        picture.set_sform(affine, code=1)
        picture.set_qform(affine, code=1)
    nib.save(picture, path)


def _load(path: Path) -> _Stored:
    with _opened(path) as (file, kind):
        picture = kind.from_file_map(kind.make_file_map({"image": file}), mmap=False)
        shape = tuple(int(n) for n in picture.shape)
        _check_shape(shape)
        dtype = picture.get_data_dtype()
        if dtype.fields is not None:
            raise ImageError(
                "rgb_nifti",
                "NIfTI files with RGB colours are not supported.",
                "Save the picture as PNG or TIFF.",
            )
        if dtype.kind not in "iuf":
            raise ImageError(
                "unsupported_pixels",
                f"Pixels of type {dtype} are not supported.",
                "Save the magnitude as float32.",
            )
        size = prod(shape) * dtype.itemsize
        # A compressed file of a few megabytes can expand to this much.
        if size > LIMITS.volume_bytes:
            raise ImageError(
                "too_large",
                f"The file expands to {size / 1024**3:.1f} GiB; at most {LIMITS.volume_bytes / 1024**3:g} GiB are read.",
                "Save it with 8 or 16 bits per voxel, crop it or scale it down.",
            )
        proxy = picture.dataobj
        array = np.asanyarray(proxy.get_unscaled()).reshape(first_three(shape))
        # gzip compares the checksum only when a read reaches the end of the file.
        file.read(1)
        header = picture.header
        affine = _usable(_in_mm(picture.affine, header), first_three(shape))
        slope, intercept = float(proxy.slope), float(proxy.inter)
    grid, spacing, canonical = oriented_grid(shape, affine)
    place = {field: np.array(header[field]) for field in _PLACE}
    grid = replace(grid, second=_second(header, affine, first_three(shape)), header=place)
    return _Stored(array, slope, intercept, grid, spacing, canonical)


def _in_mm(affine: NDArray[Any], header: Any) -> NDArray[np.float64]:
    """Convert a transform in the header's unit of length to mm."""
    scaled: NDArray[np.float64] = np.array(affine, dtype=np.float64)
    scaled[:3] *= _MM.get(int(header["xyzt_units"]) & 7, 1.0)
    return scaled


def _second(header: Any, first: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.float64] | None:
    """The qform in mm if the header has a sform, the `first`, that places the voxels otherwise; else None."""
    if not (header["sform_code"] > 0 and header["qform_code"] > 0):
        return None
    try:
        second = _usable(_in_mm(header.get_qform(), header), shape)
    except (ImageError, ValueError, nib.spatialimages.HeaderDataError):
        # The rotation of the qform is no rotation, so no program can use it.
        return None
    return second if transforms_differ(first, second, 2 if shape[2] == 1 else 3) else None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], Any]]:
    """Open a file and yield it at its start, with the nibabel class that reads it.

    The content, not the name, decides whether the file is decompressed.
    """
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file: IO[bytes] = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
        start = file.read(352)
        if len(start) < 348:
            raise EOFError("truncated header")
        order = "<" if start[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0") else ">"
        kind: Any
        if start[4:8] == b"n+2\0":
            kind, offset = nib.Nifti2Image, struct.unpack(order + "q", start[168:176])[0]
        elif start[344:348] == b"n+1\0":
            kind, offset = nib.Nifti1Image, struct.unpack(order + "f", start[108:112])[0]
        elif start[344:348] == b"ni1\0" or start[4:8] == b"ni2\0":
            raise pair_of_files()
        else:
            raise ValueError("no NIfTI header")
        # The offset of the first pixel is bounded, since a compressed file could expand without end before it.
        if not 0 <= offset <= _MAX_HEADER:
            raise ImageError("unreadable", "The NIfTI header claims an impossible size.", _CURE)
        file.seek(0)
        yield file, kind


def pair_of_files() -> ImageError:
    """The error for an image that is split into a .hdr and an .img file."""
    return ImageError(
        "unsupported_format",
        "NIfTI or Analyze in two files (.hdr and .img) is not supported.",
        "Save it as one .nii.gz file.",
    )


def _check_shape(shape: tuple[int, ...]) -> None:
    if any(n != 1 for n in shape[3:]) and all(n >= 1 for n in shape):
        text = " x ".join(str(n) for n in shape)
        raise ImageError(
            "four_dimensional",
            f"The file has {len(shape)} dimensions ({text}); images have two or three.",
            "Split it into one 3D file per time point or channel, for example with nibabel.four_to_three or fslsplit.",
        )
    if len(shape) < 2 or any(n < 1 for n in shape):
        raise ImageError(
            "empty_image",
            f"The file has no image pixels (its size is {' x '.join(str(n) for n in shape) or '0'}).",
            "Export it again.",
        )
    x, y, z = first_three(shape)
    check_size((y, x) if z == 1 else (z, y, x))


def _usable(affine: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Return an invertible affine: the missing thickness of a single slice is set to 1 mm.

    Raises ImageError bad_geometry if the affine still spans no volume.
    """
    if shape[2] == 1 and not affine[:3, 2].any():
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        affine = affine.copy()
        affine[:3, 2] = normal / (float(np.linalg.norm(normal)) or 1.0)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    is_usable = np.isfinite(affine).all() and lengths.min() > 0
    if not is_usable or abs(float(np.linalg.det(affine[:3, :3] / lengths))) < _FLAT:
        raise ImageError(
            "bad_geometry",
            "The affine in the NIfTI header is not usable: an axis has no length, or it is not a number.",
            "Save the file with valid spacing and orientation.",
        )
    return affine
