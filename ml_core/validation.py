"""The numbers after each epoch: quick ones on what the network sees, to choose the best weights by; not the final ones."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (everybody's name for it)
from numpy.typing import NDArray
from torch import Tensor, nn

from ml_core.data import PatchSampler, StoredCase, with_neighbours
from ml_core.metrics import overlap_metrics
from ml_core.plan import Plan
from ml_core.serving import TorchForward

MOST_SLICES = 32
MOST_PATCHES = 12  # of volumes


class Validator:
    """The same pieces every time: whole slices for a 2D network, patches for a 3D one, half of them on a class drawn evenly."""

    def __init__(self, cases: list[StoredCase], plan: Plan, loss_of: nn.Module) -> None:
        self.cases, self.plan, self.loss_of = cases, plan, loss_of
        slices = [(case, index) for case in cases for index in range(case.shape[0])]
        count = min(MOST_SLICES, len(slices))
        self.slices = [slices[int(index)] for index in np.linspace(0, len(slices) - 1, count)]

    def pixels(self) -> int:
        """How many pixels or voxels one validation looks at."""
        if len(self.plan.patch) == 3:
            return MOST_PATCHES * math.prod(self.plan.patch)
        return sum(math.prod(case.shape[1:]) for case, _ in self.slices)

    def validate(self, network: nn.Module) -> tuple[float, float, float]:
        """(loss, Dice, IoU): overlaps counted over all pixels looked at, then averaged over the foreground classes there."""
        forward = TorchForward(network, self.plan.precision)
        classes = len(self.plan.class_values)
        counts, losses = torch.zeros(classes, classes, dtype=torch.long), []
        for images, labels in self._pieces():
            logits = torch.from_numpy(forward(images.numpy()))
            logits = logits[(slice(None), slice(None), *(slice(0, length) for length in labels.shape[1:]))]
            device = next(network.parameters()).device
            losses.append(float(self.loss_of(logits.to(device), labels.to(device))))
            counts += torch.bincount((labels * classes + logits.argmax(1)).flatten(), minlength=classes**2).reshape(
                classes, classes
            )
        rows = [_overlap(counts, index) for index in range(1, classes)]
        return (
            float(np.mean(losses)),
            _defined_mean([row["dice"] for row in rows]),
            _defined_mean([row["iou"] for row in rows]),
        )

    def _pieces(self) -> list[tuple[Tensor, Tensor]] | map[tuple[Tensor, Tensor]]:
        """Images float32 (1, C, *padded) and class positions int64 (1, *spatial)."""
        if len(self.plan.patch) == 3:
            rng, sampler = np.random.default_rng(0), PatchSampler(self.cases, self.plan)
            return [_tensors(*sampler.draw(rng)) for _ in range(MOST_PATCHES)]
        return map(self._slice, self.slices)

    def _slice(self, place: tuple[StoredCase, int]) -> tuple[Tensor, Tensor]:
        case, index = place
        images, labels = _tensors(with_neighbours(case.images, index, self.plan.context), case.labels[index])
        wanted = self.plan.padded_shape(images.shape[-2:])
        missing = [target - length for target, length in zip(wanted, images.shape[-2:], strict=True)]
        return F.pad(images, (0, missing[1], 0, missing[0]), mode="replicate"), labels


def _tensors(images: NDArray[np.float16], labels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(images[None].astype(np.float32)), torch.from_numpy(labels[None].astype(np.int64))


def _overlap(counts: Tensor, index: int) -> dict[str, float]:
    tp = int(counts[index, index])
    return overlap_metrics(tp, int(counts[:, index].sum()) - tp, int(counts[index].sum()) - tp)


def _defined_mean(values: list[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan
