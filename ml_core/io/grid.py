"""Convert arrays between the axes of their file and canonical axes.

The canonical axes are RAS+ (right, anterior, superior), transposed to (D, H, W) = (z, y, x). A grid of one slice is a
2D image, whichever way the slice lies: its rows run along the higher of the two remaining axes (z before y before x).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from ml_core.io.image import Grid, Image, Mask

_RAS = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])


def oriented_grid(
    shape: tuple[int, ...], affine: NDArray[np.float64], codes: tuple[int, int] = (1, 1)
) -> tuple[Grid, tuple[float, ...], NDArray[np.float64]]:
    """Return the grid of a stored array, its canonical spacing in mm and its canonical affine (4x4, to RAS+ mm).

    `shape` is the stored shape (X, Y, Z, 1, ...), and `affine` the invertible matrix from stored voxels to RAS+ mm.
    """
    grid = Grid(shape, affine, io_orientation(affine), codes)
    canonical = affine @ inv_ornt_aff(grid.orientation, first_three(shape))
    if not is_flat(grid):
        return grid, _spacing(canonical, 3), canonical
    across = _across(grid)
    canonical = canonical[:, [*(axis for axis in range(3) if axis != across), across, 3]]
    return grid, _spacing(canonical, 2), canonical


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
    is how programs export slices. A mask with geometry has its axes flipped and swapped. If shapes or geometry do not
    allow this, the mask is returned as it is; `ml_core.dataset.checks.check_pair` judges the result.
    """
    if image.affine is None:
        return replace(mask, spacing=None, affine=None)
    stored = (mask.values if mask.values.ndim == 3 else mask.values[None]).transpose()
    if mask.affine is None:
        if image.grid.orientation is None or stored.shape != first_three(image.grid.shape):
            return mask
        return replace(mask, values=to_canonical(stored, image.grid), spacing=image.spacing, affine=image.affine)
    turn = ornt_transform(io_orientation(mask.affine), io_orientation(image.affine))
    if np.array_equal(turn, _RAS):
        return mask
    values: NDArray[Any] = apply_orientation(stored, turn).transpose()
    if mask.values.ndim == 2:
        if values.shape[0] != 1:
            return mask
        values = values[0]
    affine = mask.affine @ inv_ornt_aff(turn, stored.shape)
    return replace(mask, values=values, spacing=_spacing(affine, values.ndim), affine=affine)


def _across(grid: Grid) -> int:
    """The world axis (0 = x, 1 = y, 2 = z) along which the third stored axis runs: the one across the slices."""
    assert grid.orientation is not None
    return int(grid.orientation[2, 0])


def _spacing(affine: NDArray[np.float64], dimensions: int) -> tuple[float, ...]:
    """The lengths of the first `dimensions` columns of an affine in array order: the spacing in mm."""
    return tuple(float(length) for length in np.linalg.norm(affine[:3, :dimensions], axis=0))[::-1]
