"""Convert arrays between the axes of their file and canonical axes.

The canonical axes are RAS+ (right, anterior, superior), transposed to (D, H, W) = (z, y, x). A grid of one slice is a
2D image, whichever way the slice lies: its rows run along the higher of the two remaining axes (z before y before x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from ml_core.io.image import Grid, Image, Mask

# Grids may differ by this share of a spacing, and by this much in the parts of their axes' unit vectors.
MAX_DIFFERENCE = 1e-3
# The first voxels of two grids may lie apart by this share of the shortest edge of a voxel.
MAX_SHIFT = 5e-3
# Headers hold positions as float32 or as decimal numbers of about as many digits.
_DIGITS = 4 * float(np.finfo(np.float32).eps)
_RAS = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])


def oriented_grid(
    shape: tuple[int, ...], affine: NDArray[np.float64]
) -> tuple[Grid, tuple[float, ...], NDArray[np.float64]]:
    """Return the grid of a stored array, its canonical spacing in mm and its canonical affine (4x4, to RAS+ mm).

    `shape` is the stored shape (X, Y, Z, 1, ...), and `affine` the invertible matrix from stored voxels to RAS+ mm.
    """
    grid = Grid(shape, affine, io_orientation(affine))
    canonical = _canonical_affine(affine, grid)
    return grid, _spacing(canonical, 2 if is_flat(grid) else 3), canonical


def to_canonical(stored: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """Turn a stored array (X, Y, Z) into canonical (D, H, W), or (H, W) for one slice; (X, Y, Z, C) into (C, D, H, W).

    The result is a view, not a copy.
    """
    array: NDArray[Any] = apply_orientation(stored, grid.orientation).transpose()
    return np.squeeze(array, axis=array.ndim - 1 - _across(grid)) if is_flat(grid) else array


def from_canonical(values: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """Undo `to_canonical`: turn (D, H, W) or (H, W) into the stored shape of the file, its trailing 1s included."""
    array = np.expand_dims(values, 2 - _across(grid)) if is_flat(grid) else values
    back: NDArray[Any] = apply_orientation(array.transpose(), ornt_transform(_RAS, grid.orientation))
    return back.reshape(grid.shape)


def stored_slices(grid: Grid) -> tuple[int, bool]:
    """Return the axis of the canonical array across the file's slices, and whether it reverses their order."""
    assert grid.orientation is not None
    return 2 - _across(grid), bool(grid.orientation[2, 1] < 0)


def is_flat(grid: Grid) -> bool:
    """Whether the grid has one slice only, and is therefore a 2D image."""
    return first_three(grid.shape)[2] == 1


def first_three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the first three sizes of a stored shape, filled up with 1s if it has fewer."""
    x, y, z = (*shape, 1, 1)[:3]
    return x, y, z


def align(mask: Mask, image: Image) -> Mask:
    """Turn a mask to the axes of its image. Nothing is resampled.

    A mask without geometry is taken to lie on the stored grid of its image, row by row and slice by slice, because that
    is how programs export slices. A mask with geometry has its axes flipped and swapped. If it lies where the second
    transform of the image's header says, it is on the image's grid, and gets the geometry of the image. If shapes or
    geometry do not allow this, the mask is returned as it is; `ml_core.dataset.checks.check_pair` judges the result.
    """
    if image.affine is None:
        return replace(mask, spacing=None, affine=None)
    if mask.affine is None:
        stored = (mask.values if mask.values.ndim == 3 else mask.values[None]).transpose()
        if image.grid.orientation is None or stored.shape != first_three(image.grid.shape):
            return mask
        return replace(mask, values=to_canonical(stored, image.grid), spacing=image.spacing, affine=image.affine)
    turned = _turned(mask, image.affine)
    if image.grid.second is None or _lies_on(turned, image.shape, image.affine):
        return turned
    second = _canonical_affine(image.grid.second, image.grid)
    other = _turned(mask, second)
    if _lies_on(other, image.shape, second):
        return replace(other, spacing=image.spacing, affine=image.affine)
    return turned


def spacings_differ(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two spacings, in mm per axis, differ by more than rounding."""
    return bool((np.abs(np.subtract(one, other)) > MAX_DIFFERENCE * np.minimum(one, other)).any())


def directions(affine: NDArray[np.float64], dimensions: int) -> NDArray[np.float64]:
    """The unit vectors of the first `dimensions` axes of an affine, one in each column.

    A single slice's third axis is its thickness, which masks often lack.
    """
    columns = affine[:3, :dimensions]
    lengths: NDArray[np.float64] = np.linalg.norm(columns, axis=0)
    return np.asarray(columns / np.where(lengths > 0, lengths, 1.0), dtype=np.float64)


def directions_differ(one: NDArray[np.float64], other: NDArray[np.float64], dimensions: int) -> bool:
    """Whether the axes of two affines (4x4) point into different directions."""
    apart = np.abs(directions(one, dimensions) - directions(other, dimensions))
    return bool(apart.max() > MAX_DIFFERENCE)


def origins_differ(one: NDArray[np.float64], other: NDArray[np.float64], dimensions: int) -> bool:
    """Whether the first voxels of two affines (4x4) lie apart, as seen from the size of a voxel."""
    allowed = MAX_SHIFT * min(_spacing(one, dimensions)) + _DIGITS * np.abs(one[:3, 3]).max()
    return bool(np.abs(one[:3, 3] - other[:3, 3]).max() > allowed)


def transforms_differ(one: NDArray[np.float64], other: NDArray[np.float64], dimensions: int = 3) -> bool:
    """Whether two affines (4x4) place the same array otherwise."""
    return (
        spacings_differ(_spacing(one, dimensions), _spacing(other, dimensions))
        or directions_differ(one, other, dimensions)
        or origins_differ(one, other, dimensions)
    )


def _lies_on(mask: Mask, shape: tuple[int, ...], affine: NDArray[np.float64]) -> bool:
    assert mask.affine is not None
    return mask.values.shape == shape and not transforms_differ(affine, mask.affine, len(shape))


def _turned(mask: Mask, affine: NDArray[np.float64]) -> Mask:
    """Flip and swap the axes of a mask with geometry to those of an affine."""
    assert mask.affine is not None
    turn = ornt_transform(io_orientation(mask.affine), io_orientation(affine))
    if np.array_equal(turn, _RAS):
        return mask
    stored = (mask.values if mask.values.ndim == 3 else mask.values[None]).transpose()
    values: NDArray[Any] = apply_orientation(stored, turn).transpose()
    if mask.values.ndim == 2:
        if values.shape[0] != 1:
            return mask
        values = values[0]
    turned = mask.affine @ inv_ornt_aff(turn, stored.shape)
    return replace(mask, values=values, spacing=_spacing(turned, values.ndim), affine=turned)


def _canonical_affine(affine: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Say where the canonical array lies, given an affine of the stored array (both 4x4, to RAS+ mm)."""
    canonical: NDArray[np.float64] = affine @ inv_ornt_aff(grid.orientation, first_three(grid.shape))
    if not is_flat(grid):
        return canonical
    across = _across(grid)
    return canonical[:, [*(axis for axis in range(3) if axis != across), across, 3]]


def _across(grid: Grid) -> int:
    """The world axis (0 = x, 1 = y, 2 = z) along which the third stored axis runs: the one across the slices."""
    assert grid.orientation is not None
    return int(grid.orientation[2, 0])


def _spacing(affine: NDArray[np.float64], dimensions: int) -> tuple[float, ...]:
    """The lengths of the first `dimensions` columns of an affine in array order: the spacing in mm."""
    return tuple(float(length) for length in np.linalg.norm(affine[:3, :dimensions], axis=0))[::-1]
