"""Patches of stored cases: drawn at random for training, cut at given places for validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache
from numpy.typing import NDArray
from torch import Tensor

from ml_core.cases.store import StoredCase
from ml_core.planning.plan import Plan

MAPPED_BYTES, MAPPED_CASES = 128 * 2**20, 64

_Arrays = tuple[NDArray[np.float16], NDArray[np.uint8]]


class _MappedCases:
    """Keeps the most recently used cases mapped, because mapping a case takes longer than cutting a patch from it.

    The number is limited: mapped files count as memory, and each keeps a file open.
    """

    def __init__(self) -> None:
        self._arrays: LRUCache[Path, _Arrays] = LRUCache(MAPPED_BYTES, _mapped_bytes)

    def of(self, case: StoredCase) -> _Arrays:
        if case.stem not in self._arrays:
            self._arrays[case.stem] = (case.images, case.labels)
        return self._arrays[case.stem]


def _mapped_bytes(arrays: _Arrays) -> int:
    """Return the weight of a case in the cache.

    A small case weighs enough that at most MAPPED_CASES are kept. A huge case weighs at most the whole cache, so that
    it can be kept at all.
    """
    nbytes = sum(array.nbytes for array in arrays)
    return min(max(nbytes, MAPPED_BYTES // MAPPED_CASES), MAPPED_BYTES)


class PatchSampler:
    """Draws batches of patches.

    Every case is equally likely. A share of the patches (`plan.foreground_share`) is placed on a class instead: first a
    class is drawn, then one of the cases that contain it. The chance of a class grows with the square root of the
    number of cases that contain it, so that a rare class is learnt without its few cases being memorised.

    The random numbers of a step depend only on the seed and the step, so a resumed training draws the same patches as
    one that was never interrupted.
    """

    def __init__(self, cases: list[StoredCase], plan: Plan) -> None:
        self.cases, self.plan = cases, plan
        self.patch, self.context = plan.patch, plan.context
        self._mapped = _MappedCases()
        self._having: dict[int, list[StoredCase]] = {}
        for case in cases:
            for index in case.places:
                self._having.setdefault(index, []).append(case)
        self._classes = sorted(self._having)
        weights = np.sqrt([len(self._having[index]) for index in self._classes])
        self._chances = weights / weights.sum()

    def units(self) -> int:
        """Return the number of patches that together have about as many pixels as all cases."""
        return sum(
            max(1, round(math.prod(case.shape) / math.prod(self.patch)))
            if len(self.patch) == 3
            else case.shape[0] * max(1, round(math.prod(case.shape[1:]) / math.prod(self.patch)))
            for case in self.cases
        )

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Draw the batch of one step: images float32 (B, C, *patch) and class positions uint8 (B, *patch)."""
        rng = np.random.default_rng([self.plan.seed, step])
        drawn = [self.draw(rng) for _ in range(self.plan.batch_size)]
        images, labels = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*drawn, strict=True))
        return images.float(), labels

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        """Draw one patch: image float16 (C, *patch) and class positions uint8 (*patch)."""
        on_a_class = rng.random() < self.plan.foreground_share and len(self._classes) > 0
        chosen = int(rng.choice(self._classes, p=self._chances)) if on_a_class else 0
        cases = self._having[chosen] if on_a_class else self.cases
        case = cases[rng.integers(len(cases))]
        spatial = case.shape[1:]
        if on_a_class:
            places = case.places[chosen]
            index, *place = (int(item) for item in places[rng.integers(len(places))])
            # The patch is shifted at random, so that the network does not learn that the class lies in the middle.
            corner = [
                spot - int(rng.integers(size // 4, max(size // 4 + 1, 3 * size // 4)))
                for spot, size in zip(place, self.patch, strict=True)
            ]
        else:
            index = int(rng.integers(case.shape[0]))
            corner = [
                int(rng.integers(max(1, length - size + 1))) for length, size in zip(spatial, self.patch, strict=True)
            ]
        corner = [
            min(max(0, low), max(0, length - size))
            for low, length, size in zip(corner, spatial, self.patch, strict=True)
        ]
        return self.cut(case, index, corner)

    def cut(self, case: StoredCase, index: int, corner: Sequence[int]) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        """Cut the patch that begins at `corner` from slice or volume `index`; shapes and dtypes as for `draw`.

        Where the case is smaller than the patch, it is padded by mirroring.
        """
        window = tuple(slice(low, low + size) for low, size in zip(corner, self.patch, strict=True))
        images, labels = self._mapped.of(case)
        cut = with_neighbours(images, index, self.context, window)
        return pad_to(cut, self.patch), pad_to(labels[index][window], self.patch)


def with_neighbours(images: NDArray[Any], index: int, context: int, window: tuple[slice, ...] = ()) -> NDArray[Any]:
    """Join slice `index` of (N, C, …) with the `context` slices before and after it, as channels.

    Returns ((2 * context + 1) * C, …). Past either end of the volume its outermost slice is repeated. window: the part
    to cut from each spatial axis; all of it if empty.
    """
    cut = (slice(None), *window)
    if not context:
        return np.asarray(images[index][cut])
    around = [min(max(0, index + step), len(images) - 1) for step in range(-context, context + 1)]
    return np.concatenate([images[item][cut] for item in around])


def pad_to(array: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Pad the last axes at their ends to at least `shape`, by mirroring the array."""
    missing = [max(0, size - length) for size, length in zip(shape, array.shape[-len(shape) :], strict=True)]
    if not any(missing):
        return array
    return np.pad(array, [(0, 0)] * (array.ndim - len(shape)) + [(0, gap) for gap in missing], mode="symmetric")
