"""NIfTI-1 and NIfTI-2 in one file (.nii, .nii.gz), through nibabel.

Arrays are turned to the closest RAS+ axes and transposed to (D, H, W) = (z, y, x). A file with one slice, whichever
way it lies, is a 2D image: its remaining two axes, the higher world axis first.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from ml_core.errors import ImageError
from ml_core.io.image import Grid, Image, Mask, check_finite, check_size, decoding, rescale, supported
from ml_core.io.masks import as_labels

_RAS = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
_WHAT, _CURE = "NIfTI file", "Export it again as .nii.gz, and check that it was copied completely."
_MAX_HEADER = 64 * 1024**2


def read_image(path: Path) -> Image:
    """Read one 2D image or volume, scl_slope applied. Raises ImageError."""
    with decoding(_WHAT, _CURE):
        array, scale, grid = _load(path)
        array = supported(rescale(array, *scale))
        check_finite(array)
        canonical = to_canonical(array, grid)
        spacing, affine = geometry(grid)
    return Image(canonical[None], spacing, affine, "nifti", None, None, grid)


def read_mask(path: Path, *, stored: bool = False) -> Mask:
    """Read one label map; floats must hold integers. Raises ImageError.

    With `stored` the rows and columns are the file's own (z, y, x) and the mask has no geometry: programs that draw
    masks on a PNG and save NIfTI keep the picture's rows and columns.
    """
    with decoding(_WHAT, _CURE):
        array, (slope, intercept), grid = _load(path)
        if (slope, intercept) != (1.0, 0.0):
            array = array.astype(np.float64) * slope + intercept
        labels = as_labels(array, negative=True)
        if stored:
            plain = labels.transpose(2, 1, 0)
            return Mask(plain[0] if _is_flat(grid) else plain, "values", None, False, None, None)
        spacing, affine = geometry(grid)
        return Mask(to_canonical(labels, grid), "values", None, False, spacing, affine)


def to_canonical(stored: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """(X, Y, Z) in stored order → (D, H, W), or (H, W) for one slice. A view."""
    assert grid.orientation is not None
    array = apply_orientation(stored, grid.orientation).transpose(2, 1, 0)
    return np.squeeze(array, axis=2 - _flat_axis(grid)) if _is_flat(grid) else array


def from_canonical(values: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """The inverse of `to_canonical`: (D, H, W) or (H, W) → the file's own shape, trailing 1s included."""
    assert grid.orientation is not None
    array = np.expand_dims(values, 2 - _flat_axis(grid)) if _is_flat(grid) else values
    back = apply_orientation(array.transpose(2, 1, 0), ornt_transform(_RAS, grid.orientation))
    return cast(NDArray[Any], back.reshape(grid.shape))


def geometry(grid: Grid) -> tuple[tuple[float, ...], NDArray[np.float64]]:
    """Spacing in mm in array order, and the affine whose columns run along W, H and D (the slice's normal in 2D)."""
    assert grid.affine is not None
    assert grid.orientation is not None
    affine = grid.affine @ inv_ornt_aff(grid.orientation, _three(grid.shape))
    if _is_flat(grid):
        flat = _flat_axis(grid)
        affine = affine[:, [*(axis for axis in range(3) if axis != flat), flat, 3]]
    lengths = [float(v) for v in np.linalg.norm(affine[:3, :3], axis=0)]
    return tuple(lengths[:2][::-1] if _is_flat(grid) else lengths[::-1]), affine


def write_labels(values: NDArray[Any], grid: Grid, path: Path) -> None:
    """Write canonical integers on the file's own grid as .nii.gz: same shape, affine and codes.

    A grid without orientation (DICOM, TIFF) is written as (x, y, z) with its affine, or the identity.
    """
    if grid.orientation is not None:
        stored = from_canonical(values, grid)
    else:
        stored = (values[None] if values.ndim == 2 else values).transpose(2, 1, 0)
    low, high = int(values.min()), int(values.max())
    fitting = (
        d for d in (np.uint8, np.int16, np.uint16, np.int32) if np.iinfo(d).min <= low and high <= np.iinfo(d).max
    )
    dtype = next(fitting, None)
    if dtype is None:
        raise ImageError("value_range", f"Label values from {low} to {high} cannot be saved.", "Use smaller numbers.")
    # NIfTI-1 keeps lengths in 16 bits.
    kind: Any = nib.Nifti2Image if max(stored.shape) > 32767 else nib.Nifti1Image
    affine = np.eye(4) if grid.affine is None else grid.affine
    picture = kind(np.asarray(stored, dtype=dtype), affine)
    sform, qform = grid.codes
    picture.header.set_xyzt_units("mm")
    picture.set_sform(affine, code=sform or qform or 1)
    if qform:
        picture.set_qform(affine, code=qform)
    nib.save(picture, path)


def _is_flat(grid: Grid) -> bool:
    return _three(grid.shape)[2] == 1


def _flat_axis(grid: Grid) -> int:
    """The world axis (0 x, 1 y, 2 z) across the single slice."""
    assert grid.orientation is not None
    return int(grid.orientation[2, 0])


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = (*shape, 1, 1)[:3]
    return x, y, z


def _load(path: Path) -> tuple[NDArray[Any], tuple[float, float], Grid]:
    """Stored pixels (X, Y, Z) unscaled, (slope, intercept), and the grid."""
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
        proxy = picture.dataobj
        scale = (float(proxy.slope), float(proxy.inter))
        array = np.asanyarray(proxy.get_unscaled()).reshape(_three(shape))
        affine = _usable(np.asarray(picture.affine, dtype=np.float64), _three(shape))
        codes = (int(picture.header["sform_code"]), int(picture.header["qform_code"]))
    return array, scale, Grid(shape, affine, io_orientation(affine), codes)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], Any]]:
    """The open file at its start, unpacked by content and not by name, with nibabel's class for it."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file: IO[bytes] = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
        start = file.read(352)
        if len(start) < 348:
            raise EOFError("truncated header")
        order = "<" if start[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0") else ">"
        if start[4:8] == b"n+2\0":
            kind, offset = nib.Nifti2Image, struct.unpack(order + "q", start[168:176])[0]
        elif start[344:348] == b"n+1\0":
            kind, offset = nib.Nifti1Image, struct.unpack(order + "f", start[108:112])[0]
        elif start[344:348] == b"ni1\0" or start[4:8] == b"ni2\0":
            raise pair_of_files()
        else:
            raise ValueError("no NIfTI header")
        if not 0 <= offset <= _MAX_HEADER:  # a packed file could expand without end before its first pixel
            raise ImageError("unreadable", "The NIfTI header claims an impossible size.", _CURE)
        file.seek(0)
        yield file, kind


def pair_of_files() -> ImageError:
    """The refusal of .hdr/.img pairs."""
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
    x, y, z = _three(shape)
    check_size((y, x) if z == 1 else (z, y, x))


def _usable(affine: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """The affine, a missing thickness of a single slice filled in; refused when it spans no volume."""
    if shape[2] == 1 and not affine[:3, 2].any():
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        affine = affine.copy()
        affine[:3, 2] = normal / max(float(np.linalg.norm(normal)), 1e-12)
    if not np.isfinite(affine).all() or abs(float(np.linalg.det(affine[:3, :3]))) < 1e-12:
        raise ImageError(
            "bad_geometry",
            "The affine in the NIfTI header is not usable: an axis has no length, or it is not a number.",
            "Save the file with valid spacing and orientation.",
        )
    return affine


def aligned(mask: Mask, image: Image) -> Mask:
    """The mask turned to the image's axes where shapes and geometry allow it; `check_pair` judges the result.

    Without geometry a mask lies on the stored grid of its NIfTI image, row by row, as programs that export slices
    write it. Between NIfTI and DICOM axes are flipped and swapped; nothing is resampled.
    """
    if image.affine is None:
        return replace(mask, spacing=None, affine=None)
    volume = mask.values if mask.values.ndim == 3 else mask.values[None]
    if mask.affine is None:
        if image.family != "nifti" or volume.shape[::-1] != _three(image.grid.shape):
            return mask
        values = to_canonical(volume.transpose(2, 1, 0), image.grid)
        return replace(mask, values=values, spacing=image.spacing, affine=image.affine)
    turn = ornt_transform(io_orientation(mask.affine), io_orientation(image.affine))
    if np.array_equal(turn, _RAS):
        return mask
    stored = volume.transpose(2, 1, 0)
    moved = apply_orientation(stored, turn)
    affine = mask.affine @ inv_ornt_aff(turn, stored.shape)
    values = moved.transpose(2, 1, 0)
    if mask.values.ndim == 2:
        if values.shape[0] != 1:
            return mask
        values = values[0]
    lengths = [float(v) for v in np.linalg.norm(affine[:3, :3], axis=0)]
    spacing = tuple(lengths[: values.ndim][::-1])
    return replace(mask, values=values, spacing=spacing, affine=affine)
