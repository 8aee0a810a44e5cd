"""The quick validation after each epoch, which chooses the best weights. It is not the final evaluation.

It measures slices or patches on the network's grid, not whole images in their own resolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (everybody's name for it)
from numpy.typing import NDArray
from torch import Tensor, nn

from ml_core.cases.patches import PatchSampler, with_neighbours
from ml_core.cases.store import StoredCase
from ml_core.measures.metrics import IGNORED, overlap_metrics
from ml_core.networks.device import most_probable
from ml_core.planning.plan import Plan
from ml_core.prediction.runtimes import TorchForward

# Slices that a 2D network is validated on.
MAX_SLICES = 32
# Patches of volumes that a 3D network is validated on.
MAX_PATCHES = 12
# Pixels per axis. Only a piece of this size is used of a larger slice, so that time and memory stay bounded.
WINDOW = 768
MAX_PIXELS = MAX_SLICES * 512**2

_Piece = tuple[StoredCase, int, tuple[slice, slice]]
"""A case, the index of one of its slices, and the rows and columns of that slice."""


class Validator:
    """Validates a network on the same pieces after each epoch: slices for a 2D network, patches for a 3D one.

    Some of the pieces are placed on classes, so that rare classes are validated too.
    """

    def __init__(self, cases: list[StoredCase], plan: Plan, loss_of: nn.Module) -> None:
        self.cases, self.plan, self.loss_of = cases, plan, loss_of
        self.pieces = [] if len(plan.patch) == 3 else _choose(cases)

    def pixels(self) -> int:
        """The number of pixels or voxels in one validation."""
        if len(self.plan.patch) == 3:
            return MAX_PATCHES * math.prod(self.plan.patch)
        return sum(math.prod(part.stop - part.start for part in window) for _, _, window in self.pieces)

    def validate(self, network: nn.Module) -> tuple[float, float, float]:
        """The mean loss, Dice and IoU. The overlap is counted over all pieces together and averaged over foreground
        classes.

        A class that no piece contains is left out, because a single stray pixel of it would decide which weights are
        best. Dice and IoU are NaN if the pieces contain no foreground at all.
        """
        forward = TorchForward(network, self.plan.precision)
        classes = len(self.plan.class_values)
        counts, losses = torch.zeros(classes, classes, dtype=torch.long), []
        for images, labels in self._pieces():
            logits = torch.from_numpy(forward(images.numpy()))
            logits = logits[(slice(None), slice(None), *(slice(0, length) for length in labels.shape[1:]))]
            device = next(network.parameters()).device
            losses.append(float(self.loss_of(logits.to(device), labels.to(device))))
            seen = labels != IGNORED
            pairs = torch.bincount((labels * classes + most_probable(logits))[seen], minlength=classes**2)
            counts += pairs.reshape(classes, classes)
        rows = [_overlap(counts, index) for index in range(1, classes) if counts[index].any()]
        dice, iou = ([row[name] for row in rows] for name in ("dice", "iou"))
        return float(np.mean(losses)), _mean(dice), _mean(iou)

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each piece: image float32 (1, C, *padded) and class positions int64 (1, *spatial)."""
        if len(self.plan.patch) == 3:
            rng, sampler = np.random.default_rng(0), PatchSampler(self.cases, self.plan)
            return (_tensors(*sampler.draw(rng)) for _ in range(MAX_PATCHES))
        return map(self._cut, self.pieces)

    def _cut(self, piece: _Piece) -> tuple[Tensor, Tensor]:
        case, index, window = piece
        images, labels = _tensors(
            with_neighbours(case.images, index, self.plan.context, window), case.labels[index][window]
        )
        target_shape = self.plan.padded_shape(images.shape[-2:])
        missing = [target - length for target, length in zip(target_shape, images.shape[-2:], strict=True)]
        return F.pad(images, (0, missing[1], 0, missing[0]), mode="replicate"), labels


def _choose(cases: list[StoredCase]) -> list[_Piece]:
    """Choose the slices to validate on: all if they are few, otherwise half spread evenly and half placed on classes.

    Of a slice larger than WINDOW only a part is chosen.
    """
    rng = np.random.default_rng(0)
    slices = [(case, index) for case in cases for index in range(case.shape[0])]
    height, width = (min(WINDOW, max(case.shape[axis] for case in cases)) for axis in (1, 2))
    max_pieces = max(1, min(MAX_SLICES, len(slices), MAX_PIXELS // (height * width)))
    spread = np.linspace(0, len(slices) - 1, max_pieces if max_pieces == len(slices) else math.ceil(max_pieces / 2))
    chosen = [(*slices[int(number)], None) for number in spread]
    placed = list(_places(cases, max_pieces - len(chosen), rng))
    return [(case, index, _window(case, place, rng)) for case, index, place in [*chosen, *placed]]


def _places(
    cases: list[StoredCase], count: int, rng: np.random.Generator
) -> Iterator[tuple[StoredCase, int, NDArray[np.int32] | None]]:
    """Draw `count` places, of one foreground class after the other, each in a random case that contains the class.

    Yields (case, slice, (row, column)).
    """
    classes = sorted({index for case in cases for index in case.places if index > 0})
    for number in range(count if classes else 0):
        index = classes[number % len(classes)]
        cases_with_class = [case for case in cases if index in case.places]
        case = cases_with_class[rng.integers(len(cases_with_class))]
        place = case.places[index][rng.integers(len(case.places[index]))]
        yield case, int(place[0]), place[1:]


def _window(case: StoredCase, place: NDArray[np.int32] | None, rng: np.random.Generator) -> tuple[slice, slice]:
    """The rows and columns to use: the whole slice, or for a large one the part around `place` (None: a random one)."""
    parts = []
    for axis, length in enumerate(case.shape[1:]):
        middle = rng.integers(length) if place is None else place[axis]
        low = min(max(0, int(middle) - WINDOW // 2), max(0, length - WINDOW))
        parts.append(slice(low, min(length, low + WINDOW)))
    return parts[0], parts[1]


def _tensors(images: NDArray[np.float16], labels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(images[None].astype(np.float32)), torch.from_numpy(labels[None].astype(np.int64))


def _overlap(counts: Tensor, index: int) -> dict[str, float]:
    tp = int(counts[index, index])
    return overlap_metrics(tp, int(counts[:, index].sum()) - tp, int(counts[index].sum()) - tp)


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan
