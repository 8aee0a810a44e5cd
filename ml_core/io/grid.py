"""Between a file's own axes and canonical ones: RAS+, transposed to (D, H, W) = (z, y, x).

A grid of one slice, whichever way it lies, is a 2D image: its remaining two axes, the higher world axis first.
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
    """The grid of a file stored as (X, Y, Z, 1...) with an invertible `affine`, and the canonical spacing and affine."""
    grid = Grid(shape, affine, io_orientation(affine), codes)
    canonical = affine @ inv_ornt_aff(grid.orientation, first_three(shape))
    if not is_flat(grid):
        return grid, _spacing(canonical, 3), canonical
    across = _across(grid)
    canonical = canonical[:, [*(axis for axis in range(3) if axis != across), across, 3]]
    return grid, _spacing(canonical, 2), canonical


def to_canonical(stored: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """(X, Y, Z) in stored order → (D, H, W), or (H, W) for one slice. A view.

    Also (X, Y, Z, C) → (C, D, H, W).
    """
    array: NDArray[Any] = apply_orientation(stored, grid.orientation).transpose()
    return np.squeeze(array, axis=array.ndim - 1 - _across(grid)) if is_flat(grid) else array


def from_canonical(values: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """The inverse of `to_canonical`: (D, H, W) or (H, W) → the file's own shape, trailing 1s included."""
    array = np.expand_dims(values, 2 - _across(grid)) if is_flat(grid) else values
    back: NDArray[Any] = apply_orientation(array.transpose(), ornt_transform(_RAS, grid.orientation))
    return back.reshape(grid.shape)


def stored_slices(grid: Grid) -> tuple[int, bool]:
    """The axis of the canonical array along which the slices of the file lie, and whether they lie in the opposite order."""
    assert grid.orientation is not None
    return 2 - _across(grid), bool(grid.orientation[2, 1] < 0)


def is_flat(grid: Grid) -> bool:
    """True for a grid of one slice."""
    return first_three(grid.shape)[2] == 1


def first_three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """A stored shape without trailing 1s beyond the third axis, or filled up to three."""
    x, y, z = (*shape, 1, 1)[:3]
    return x, y, z


def align(mask: Mask, image: Image) -> Mask:
    """The mask turned to the image's axes where shapes and geometry allow it; `ml_core.dataset.checks.check_pair` judges the result.

    A mask without geometry lies on the stored grid of its image, row by row and slice by slice, as programs that
    export slices write it. One with geometry is flipped and its axes swapped; nothing is resampled.
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
    """The world axis (0 x, 1 y, 2 z) across the third stored axis."""
    assert grid.orientation is not None
    return int(grid.orientation[2, 0])


def _spacing(affine: NDArray[np.float64], dimensions: int) -> tuple[float, ...]:
    """mm in array order."""
    return tuple(float(length) for length in np.linalg.norm(affine[:3, :dimensions], axis=0))[::-1]
