"""Find near-duplicates: one picture under two names, such as a copy or one that was scaled, brightened or turned.

Near-duplicates on two sides of a split would make a model look better than it is. Images are compared by their fine
structure: a thumbnail without its coarse brightness, the signature. On the sample datasets, the signatures of the two
most similar different cases correlate by 0.34 (serial sections), 0.29 (cells), 0.985 (CT slices 2 mm apart) and 0.86
(brains registered to one atlas). After JPEG at quality 50, scaling to half the size, noise, or another brightness,
contrast or gamma, an image still correlates with itself by 0.992 or more. Slices much less than 2 mm apart count as
near-duplicates and stay together, which is an error on the safe side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ml_core.dataset.splits import join
from ml_core.io import Image

# Side of a thumbnail in pixels, by dimensions. Either has 4096 numbers, which take 8 KB.
SIDES = {2: 64, 3: 16}
# Sigma, in thumbnail pixels, of the Gaussian blur that is subtracted as the coarse brightness.
COARSE = 1.5
# Two cases are near-duplicates from this correlation on.
THRESHOLD = 0.988
# Numbers to which a signature is projected for a first, quick comparison.
PROJECTED = 256
# The signatures themselves are compared if their projections correlate by this much.
LIKELY = 0.97
# Cases that are compared in one matrix product.
CHUNK = 1000
# An image of more pixels is scaled down in strips, to save memory.
AT_ONCE = 2**22


def signature(image: Image) -> NDArray[np.float16]:
    """Return the fine structure of an image: (64, 64), or (16, 16, 16) for a volume, float16, with mean 0 and norm 1.

    An image of one value has no structure. Its signature is all zeros, which resemble no other image.
    """
    small = thumbnail(image.array, SIDES[image.dimensions])
    fine = small - ndimage.gaussian_filter(small, COARSE, mode="nearest")
    fine -= fine.mean()
    norm = float(np.linalg.norm(fine))
    # A norm this small comes from rounding errors alone.
    if norm <= 1e-5 * float(np.linalg.norm(small)):
        return np.zeros(fine.shape, np.float16)
    scaled: NDArray[np.float16] = (fine / norm).astype(np.float16)
    return scaled


def near_duplicate_groups(signatures: Sequence[NDArray[np.floating]] | NDArray[np.floating]) -> list[int]:
    """Return a group number for each case, equal for near-duplicates. Groups are numbered in order of appearance.

    Two cases that are near-duplicates of a third are in one group. Images are also compared after quarter turns and
    mirroring, volumes after mirroring. A 2D and a 3D case are never in one group. The comparison takes 70 MB, plus 9 KB
    for each case. Its time grows with the square of the number of cases: 10,000 take 13 s on one core.
    """
    labels: NDArray[np.integer] = np.arange(len(signatures))
    for dimensions in SIDES:
        members = np.array([place for place, item in enumerate(signatures) if item.ndim == dimensions], int)
        for pairs in _pairs([signatures[place] for place in members]):
            # Earlier pairs are kept as one edge from each case to the first of its group. So they stay few, even if
            # thousands of cases are alike.
            known = np.stack([np.arange(len(labels)), np.unique(labels, return_index=True)[1][labels]], axis=1)
            labels = join(len(labels), np.concatenate([known, members[pairs]]))
    return [int(label) for label in labels]


def _pairs(signatures: list[NDArray[np.floating]]) -> Iterator[NDArray[np.intp]]:
    """Yield blocks (M, 2) of positions of near-duplicates.

    Most pairs are ruled out by comparing random projections to PROJECTED numbers, which is a sixteenth of the work. For
    a correlation of 0.988 the projection errs by 0.0015 (one standard deviation), so LIKELY misses no pair.
    """
    chunks = [signatures[start : start + CHUNK] for start in range(0, len(signatures), CHUNK)]
    coarse = [_project(_flat(chunk)) for chunk in chunks]
    for number, chunk in enumerate(chunks):
        for turned in _turned(np.stack(chunk).astype(np.float32)):
            rows = turned.reshape(len(chunk), -1)
            projected = _project(rows)
            for beside in range(number, len(chunks)):
                likely = projected @ coarse[beside].T >= LIKELY
                # Within a chunk, every pair is compared once, and no case with itself.
                if beside == number:
                    likely = np.triu(likely, 1)
                left, right = np.flatnonzero(likely.any(axis=1)), np.flatnonzero(likely.any(axis=0))
                if len(left):
                    pairs = np.argwhere(rows[left] @ _flat([chunks[beside][place] for place in right]).T >= THRESHOLD)
                    yield np.stack([left[pairs[:, 0]] + number * CHUNK, right[pairs[:, 1]] + beside * CHUNK], axis=1)


def _flat(signatures: Sequence[NDArray[np.floating]]) -> NDArray[np.float32]:
    return np.stack(signatures).reshape(len(signatures), -1).astype(np.float32)


def _project(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Project signatures (N, 4096) to random directions: (N, PROJECTED) of norm 1. A signature of zeros stays zero."""
    directions = np.random.default_rng(0).standard_normal((rows.shape[1], PROJECTED), np.float32)
    projections = rows @ directions
    lengths = np.linalg.norm(projections, axis=1, keepdims=True)
    normed: NDArray[np.float32] = projections / np.maximum(lengths, 1e-6)
    return normed


def _turned(rows: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield signatures (N, ...) in 8 positions: in 2D by quarter turns and mirroring, in 3D by mirroring alone."""
    if rows.ndim == 3:
        for mirrored in (rows, rows[:, ::-1]):
            yield from (np.rot90(mirrored, quarters, (1, 2)) for quarters in range(4))
    else:
        for x, y, z in product((1, -1), repeat=3):
            yield rows[:, ::x, ::y, ::z]


def thumbnail(array: NDArray[np.generic], side: int) -> NDArray[np.float32]:
    """Scale an image (C, *spatial) to `side` pixels along each axis by averaging over areas and channels, float32."""
    height = array.shape[1]
    if array.size <= AT_ONCE:
        small = _averaged(array.mean(axis=0, dtype=np.float32), side, 0)
    else:
        # Only one strip at a time is converted, because 200 million pixels in float32 would take 800 MB.
        strips = []
        for row in _area_weights(height, side):
            used = np.flatnonzero(row)
            strip = array[:, used[0] : used[-1] + 1].mean(axis=0, dtype=np.float32)
            strips.append(np.tensordot(row[used], strip, 1))
        small = np.stack(strips)
    for axis in range(1, small.ndim):
        small = _averaged(small, side, axis)
    return small


def _averaged(array: NDArray[np.float32], side: int, axis: int) -> NDArray[np.float32]:
    """Resize one axis to length `side`: each new entry is the mean of an equally long stretch of the old axis.

    An old entry on the border of two stretches counts in both, by its share. The means are differences of a cumulative
    sum. A matrix product would be as short, but BLAS runs it in many threads, which wait for each other on a busy CPU.
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
    """Return the weight of each of `length` pixels in each of `side` equal parts: (side, length) float32.

    Each row sums to 1. A pixel on the border of two parts counts in both, by its area.
    """
    edges, pixels = np.linspace(0, length, side + 1), np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    overlap = np.maximum(overlap, 0)
    weights: NDArray[np.float32] = (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float32)
    return weights
