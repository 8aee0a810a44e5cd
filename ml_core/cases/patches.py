"""Patches of stored cases: drawn for training, cut out for validation."""

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
    """The cases used last, still mapped: mapping one takes longer than cutting a patch. Only some, since mapped files count as memory
    and each keeps a file open."""

    def __init__(self) -> None:
        self._arrays: LRUCache[Path, _Arrays] = LRUCache(MAPPED_BYTES, _mapped_bytes)

    def of(self, case: StoredCase) -> _Arrays:
        if case.stem not in self._arrays:
            self._arrays[case.stem] = (case.images, case.labels)
        return self._arrays[case.stem]


def _mapped_bytes(arrays: _Arrays) -> int:
    """What a case counts for: a small one so much that there are never more than MAPPED_CASES, a huge one so little that it is kept."""
    nbytes = sum(array.nbytes for array in arrays)
    return min(max(nbytes, MAPPED_BYTES // MAPPED_CASES), MAPPED_BYTES)


class PatchSampler:
    """Draws batches of patches. Cases are drawn evenly; a share of the patches is placed on a class, in a case that has it.

    Classes of equally many cases are drawn evenly. One of few cases comes less often, by the root of their number: often enough to
    be learnt, and not so often that the few are learnt by heart.

    The numbers of a step come from the seed and the step alone, so that a training that goes on draws what it would have drawn.
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
        """How many patches it takes to see every pixel about once."""
        return sum(
            max(1, round(math.prod(case.shape) / math.prod(self.patch)))
            if len(self.patch) == 3
            else case.shape[0] * max(1, round(math.prod(case.shape[1:]) / math.prod(self.patch)))
            for case in self.cases
        )

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images float32 (B, C, *patch) and class positions uint8 (B, *patch)."""
        rng = np.random.default_rng([self.plan.seed, step])
        drawn = [self.draw(rng) for _ in range(self.plan.batch_size)]
        images, labels = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*drawn, strict=True))
        return images.float(), labels

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        """One patch: (C, *patch) and (*patch)."""
        on_a_class = rng.random() < self.plan.foreground_share
        chosen = int(rng.choice(self._classes, p=self._chances)) if on_a_class else 0
        cases = self._having[chosen] if on_a_class else self.cases
        case = cases[rng.integers(len(cases))]
        spatial = case.shape[1:]
        if on_a_class:
            places = case.places[chosen]
            index, *place = (int(item) for item in places[rng.integers(len(places))])
            # Anywhere that keeps the place inside the patch, not always its middle.
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
        """The patch of slice or volume `index` that begins at `corner`."""
        window = tuple(slice(low, low + size) for low, size in zip(corner, self.patch, strict=True))
        images, labels = self._mapped.of(case)
        cut = with_neighbours(images, index, self.context, window)
        return pad_to(cut, self.patch), pad_to(labels[index][window], self.patch)


def with_neighbours(images: NDArray[Any], index: int, context: int, window: tuple[slice, ...] = ()) -> NDArray[Any]:
    """Slice `index` of (N, C, …) with `context` neighbours on each side as channels: ((2 * context + 1) * C, …).

    Beyond the ends the last slice is repeated.
    """
    cut = (slice(None), *window)
    if not context:
        return np.asarray(images[index][cut])
    around = [min(max(0, index + step), len(images) - 1) for step in range(-context, context + 1)]
    return np.concatenate([images[item][cut] for item in around])


def pad_to(array: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Pad the last axes at their ends to at least `shape`, mirroring what is there."""
    missing = [max(0, size - length) for size, length in zip(shape, array.shape[-len(shape) :], strict=True)]
    if not any(missing):
        return array
    return np.pad(array, [(0, 0)] * (array.ndim - len(shape)) + [(0, gap) for gap in missing], mode="symmetric")
