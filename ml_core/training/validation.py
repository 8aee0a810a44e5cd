"""The numbers after each epoch: quick ones on what the network sees, to choose the best weights by; not the final ones."""

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

MAX_SLICES = 32
MAX_PATCHES = 12  # of volumes
WINDOW = 768  # pixels; of larger slices a piece of this size is looked at, so that time and memory stay bounded
MAX_PIXELS = MAX_SLICES * 512**2


_Piece = tuple[StoredCase, int, tuple[slice, slice]]
"""Of a case the slice, and which part of it."""


class Validator:
    """The same pieces every time: of a 2D network slices, of a 3D one patches; half of them are placed on a class drawn evenly."""

    def __init__(self, cases: list[StoredCase], plan: Plan, loss_of: nn.Module) -> None:
        self.cases, self.plan, self.loss_of = cases, plan, loss_of
        self.pieces = [] if len(plan.patch) == 3 else _choose(cases)

    def pixels(self) -> int:
        """How many pixels or voxels one validation looks at."""
        if len(self.plan.patch) == 3:
            return MAX_PATCHES * math.prod(self.plan.patch)
        return sum(math.prod(part.stop - part.start for part in window) for _, _, window in self.pieces)

    def validate(self, network: nn.Module) -> tuple[float, float, float]:
        """(loss, Dice, IoU): overlaps counted over all pixels looked at, then averaged over the foreground classes there.

        A class that none of the pieces has is left out: a stray pixel of it must not decide which weights are best. Dice and IoU
        are NaN where there is no foreground at all.
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
        """Images float32 (1, C, *padded) and class positions int64 (1, *spatial)."""
        if len(self.plan.patch) == 3:
            rng, sampler = np.random.default_rng(0), PatchSampler(self.cases, self.plan)
            return (_tensors(*sampler.draw(rng)) for _ in range(MAX_PATCHES))
        return map(self._cut, self.pieces)

    def _cut(self, piece: _Piece) -> tuple[Tensor, Tensor]:
        case, index, window = piece
        images, labels = _tensors(
            with_neighbours(case.images, index, self.plan.context, window), case.labels[index][window]
        )
        wanted = self.plan.padded_shape(images.shape[-2:])
        missing = [target - length for target, length in zip(wanted, images.shape[-2:], strict=True)]
        return F.pad(images, (0, missing[1], 0, missing[0]), mode="replicate"), labels


def _choose(cases: list[StoredCase]) -> list[_Piece]:
    """Whole slices, all of them where they are few; else half spread evenly and half on the classes in turn. Parts of large ones."""
    rng = np.random.default_rng(0)
    slices = [(case, index) for case in cases for index in range(case.shape[0])]
    height, width = (min(WINDOW, max(case.shape[axis] for case in cases)) for axis in (1, 2))
    most = max(1, min(MAX_SLICES, len(slices), MAX_PIXELS // (height * width)))
    spread = np.linspace(0, len(slices) - 1, most if most == len(slices) else math.ceil(most / 2))
    chosen = [(*slices[int(number)], None) for number in spread]
    placed = list(_places(cases, most - len(chosen), rng))
    return [(case, index, _window(case, place, rng)) for case, index, place in [*chosen, *placed]]


def _places(
    cases: list[StoredCase], count: int, rng: np.random.Generator
) -> Iterator[tuple[StoredCase, int, NDArray[np.int32] | None]]:
    """Places of the foreground classes in turn, each in a case drawn from those that have it."""
    classes = sorted({index for case in cases for index in case.places if index > 0})
    for number in range(count if classes else 0):
        index = classes[number % len(classes)]
        having = [case for case in cases if index in case.places]
        case = having[rng.integers(len(having))]
        place = case.places[index][rng.integers(len(case.places[index]))]
        yield case, int(place[0]), place[1:]


def _window(case: StoredCase, place: NDArray[np.int32] | None, rng: np.random.Generator) -> tuple[slice, slice]:
    """The whole slice, or of a large one the part around the place, or of a place drawn."""
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
