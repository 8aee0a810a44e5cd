"""Cases that are one picture under two names: copied, saved again as JPEG, scaled, brightened, or turned.

On two sides of a split they would make a model look better than it is. What counts as one picture is the fine structure: the
thumbnail without its coarse brightness. On the shared sample sets the likest different cases correlate by 0.34 (serial
sections), 0.29 (cells), 0.985 (CT slices 2 mm apart) and 0.86 (brains on one atlas), while JPEG at quality 50, half
the size, other brightness, contrast or gamma, and noise keep 0.992 or more. Slices much less than 2 mm apart do pass for
one picture, and then stay together: an error on the safe side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ml_core.dataset.splits import join
from ml_core.io import Image

SIDES = {2: 64, 3: 16}  # pixels of a thumbnail's side, by dimensions: 4096 numbers, 8 KB, either way
COARSE = 1.5  # thumbnail pixels: the sigma of the Gaussian whose result is taken away
THRESHOLD = 0.988  # correlation from which on two cases are one picture
PROJECTED = 256
LIKELY = 0.97  # correlation of projections from which on the signatures themselves are compared
CHUNK = 1000  # cases compared at once
AT_ONCE = 2**22  # pixels of an image that is scaled down in one piece


def signature(image: Image) -> NDArray[np.float16]:
    """The fine structure of an image in small: (64, 64), or (16, 16, 16) for a volume, with mean 0 and norm 1.

    Zeros for an image without any structure (all of one value), which then resembles no other.
    """
    small = thumbnail(image.array, SIDES[image.dimensions])
    fine = small - ndimage.gaussian_filter(small, COARSE, mode="nearest")
    fine -= fine.mean()
    norm = float(np.linalg.norm(fine))
    if norm <= 1e-5 * float(np.linalg.norm(small)):  # nothing but rounding errors
        return np.zeros(fine.shape, np.float16)
    scaled: NDArray[np.float16] = (fine / norm).astype(np.float16)
    return scaled


def near_duplicate_groups(signatures: Sequence[NDArray[np.floating]] | NDArray[np.floating]) -> list[int]:
    """A group number for each case, equal for cases that are one picture, also through a third; in order of appearance.

    Images are also compared turned by quarters and mirrored, volumes mirrored. Two- and three-dimensional cases never join.
    Memory: 9 KB a case and 70 MB for the comparison. Time grows with the square of the number of cases (10,000: 13 s on one core).
    """
    labels: NDArray[np.integer] = np.arange(len(signatures))
    for dimensions in SIDES:
        members = np.array([place for place, item in enumerate(signatures) if item.ndim == dimensions], int)
        for pairs in _pairs([signatures[place] for place in members]):
            # As edges to the first of each group, what was found stays small even where thousands of cases are alike.
            known = np.stack([np.arange(len(labels)), np.unique(labels, return_index=True)[1][labels]], axis=1)
            labels = join(len(labels), np.concatenate([known, members[pairs]]))
    return [int(label) for label in labels]


def _pairs(signatures: list[NDArray[np.floating]]) -> Iterator[NDArray[np.intp]]:
    """Blocks of (M, 2) positions of cases that are one picture.

    Most pairs are ruled out on a random projection to PROJECTED numbers: for a correlation of 0.988 it is off by
    0.0015 (Gaussian, one sigma), so that LIKELY misses none, at a sixteenth of the work.
    """
    chunks = [signatures[start : start + CHUNK] for start in range(0, len(signatures), CHUNK)]
    coarse = [_project(_flat(chunk)) for chunk in chunks]
    for number, chunk in enumerate(chunks):
        for turned in _turned(np.stack(chunk).astype(np.float32)):
            rows = turned.reshape(len(chunk), -1)
            projected = _project(rows)
            for beside in range(number, len(chunks)):
                likely = projected @ coarse[beside].T >= LIKELY
                if beside == number:
                    likely = np.triu(likely, 1)  # each pair once, and none of a case with itself
                left, right = np.flatnonzero(likely.any(axis=1)), np.flatnonzero(likely.any(axis=0))
                if len(left):
                    found = np.argwhere(rows[left] @ _flat([chunks[beside][place] for place in right]).T >= THRESHOLD)
                    yield np.stack([left[found[:, 0]] + number * CHUNK, right[found[:, 1]] + beside * CHUNK], axis=1)


def _flat(signatures: Sequence[NDArray[np.floating]]) -> NDArray[np.float32]:
    return np.stack(signatures).reshape(len(signatures), -1).astype(np.float32)


def _project(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, 4096) → (N, PROJECTED) of norm 1, zeros for zeros."""
    directions = np.random.default_rng(0).standard_normal((rows.shape[1], PROJECTED), np.float32)
    found = rows @ directions
    normed: NDArray[np.float32] = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6)
    return normed


def _turned(rows: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Signatures (N, ...) in all 8 positions that quarter turns and mirrors give (2D), or mirrors alone (3D)."""
    if rows.ndim == 3:
        for mirrored in (rows, rows[:, ::-1]):
            yield from (np.rot90(mirrored, quarters, (1, 2)) for quarters in range(4))
    else:
        for x, y, z in product((1, -1), repeat=3):
            yield rows[:, ::x, ::y, ::z]


def thumbnail(array: NDArray[np.generic], side: int) -> NDArray[np.float32]:
    """(C, *spatial) → the mean over channels, averaged by area to `side` pixels along each axis, float32."""
    height = array.shape[1]
    if array.size <= AT_ONCE:
        small = _averaged(array.mean(axis=0, dtype=np.float32), side, 0)
    else:
        strips = []  # one at a time: an image of 200 million pixels in float32 would not be small
        for row in _area_weights(height, side):
            used = np.flatnonzero(row)
            strip = array[:, used[0] : used[-1] + 1].mean(axis=0, dtype=np.float32)
            strips.append(np.tensordot(row[used], strip, 1))
        small = np.stack(strips)
    for axis in range(1, small.ndim):
        small = _averaged(small, side, axis)
    return small


def _averaged(array: NDArray[np.float32], side: int, axis: int) -> NDArray[np.float32]:
    """`array` averaged by area to `side` parts along one axis.

    From running sums: a matrix product would be as short, but waits for all of BLAS's threads where others use the cores.
    """
    pixels = np.moveaxis(array, axis, 0)
    sums = np.zeros((len(pixels) + 1, *pixels.shape[1:]))
    np.cumsum(pixels, axis=0, out=sums[1:])
    edges = np.linspace(0, len(pixels), side + 1)
    whole = np.minimum(edges.astype(int), len(pixels) - 1)
    part = (edges - whole).reshape(-1, *[1] * (pixels.ndim - 1))
    parts = np.diff(sums[whole] + part * pixels[whole], axis=0) * (side / len(pixels))
    return np.moveaxis(parts.astype(np.float32), 0, axis)


def _area_weights(length: int, side: int) -> NDArray[np.float32]:
    """(side, length): the share of each pixel in each of `side` equal parts, so that the part of a pixel counts too."""
    edges, pixels = np.linspace(0, length, side + 1), np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    overlap = np.maximum(overlap, 0)
    weights: NDArray[np.float32] = (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float32)
    return weights
