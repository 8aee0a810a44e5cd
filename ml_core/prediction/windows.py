"""Predicts images that are larger than a network's window, in overlapping windows blended with Gaussian weights.

The method is nnU-Net's sliding window (Isensee 2021).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

_Corner = tuple[tuple[int, Tensor], ...]
# The width of the Gaussian, as a share of the window's length; nnU-Net's value.
SIGMA = 1 / 8


def blend(
    run: Callable[[Tensor], Tensor], image: Tensor, window: Sequence[int], *, overlap: float, at_once: int
) -> Tensor:
    """Predict `image` window by window and blend the results: probabilities float16 (K, *spatial).

    run: windows (N, C, *window) → probabilities (N, K, *window). image: float32 (C, *spatial), at least as large as the
    window on every axis. overlap: the least share of a window that its neighbour covers. at_once: windows in a batch.
    Only the result and one batch are in memory.

    A window's weight is a product of one factor per axis, and the windows stand on a regular grid, so the sum of all
    weights is a product of one factor per axis too. The factors are divided by their sums beforehand, so the weights
    add up to one and no map of weights is needed.
    """
    spatial = image.shape[1:]
    axes = [_weighted_starts(length, size, overlap) for length, size in zip(spatial, window, strict=True)]
    blended: Tensor | None = None
    for corners in _batches(itertools.product(*axes), at_once):
        places = [
            tuple(slice(start, start + size) for (start, _), size in zip(corner, window, strict=True))
            for corner in corners
        ]
        batch = run(torch.stack([image[(slice(None), *place)] for place in places]))
        if blended is None:
            blended = torch.zeros(batch.shape[1], *spatial, dtype=torch.float16, device=batch.device)
        for probabilities, place, corner in zip(batch, places, corners, strict=True):
            for axis, (_, weights) in enumerate(corner):
                shape = [1] * probabilities.ndim
                shape[axis + 1] = -1
                probabilities = probabilities * weights.to(probabilities).reshape(shape)
            blended[(slice(None), *place)] += probabilities
    assert blended is not None
    return blended


def starts(length: int, size: int, overlap: float) -> list[int]:
    """Where windows of `size` begin to cover `length` evenly. Each shares at least `overlap` of it with the next."""
    count = 1 if length <= size else math.ceil((length - size) / (size * (1 - overlap))) + 1
    return [round(index * (length - size) / max(1, count - 1)) for index in range(count)]


def _weighted_starts(length: int, size: int, overlap: float) -> list[tuple[int, Tensor]]:
    """(start, weights float32 (size,)) of each window along one axis. At each place the weights add up to one."""
    places = torch.arange(size, dtype=torch.float32)
    bell = torch.exp(-0.5 * ((places - (size - 1) / 2) / (SIGMA * size)) ** 2).clamp_min(1e-3)
    begins, total = starts(length, size, overlap), torch.zeros(length)
    for start in begins:
        total[start : start + size] += bell
    return [(start, bell / total[start : start + size]) for start in begins]


def _batches(items: Iterator[_Corner], size: int) -> Iterator[list[_Corner]]:
    while batch := list(itertools.islice(items, size)):
        yield batch
