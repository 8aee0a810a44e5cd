"""The losses that a training can minimise.

They are not taken from a library, because here all terms share one log-softmax and need no one-hot labels. On a CPU,
Dice + cross-entropy takes about half the time of segmentation_models_pytorch's DiceLoss with PyTorch's cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (everybody's name for it)
from torch import Tensor, nn

from ml_core.errors import ConfigError
from ml_core.measures.metrics import IGNORED

# Pixels on each side of a border between classes that get BORDER_WEIGHT.
BORDER_REACH = 2
# The weight that is added to the 1 of every pixel.
BORDER_WEIGHT = 4.0

# Name → the arguments of SegmentationLoss: overlap, false_positives, misses, entropy, kind.
# Costs of 0.5 and 0.5 make the overlap Dice. Costs of 0.3 and 0.7 make it the Tversky index of Salehi 2017, for which a
# missed pixel is worse than a false positive one.
_CHOICES = {
    "dice_ce": (1.0, 0.5, 0.5, 1.0, "plain"),
    "ce": (0.0, 0.5, 0.5, 1.0, "plain"),
    "dice": (1.0, 0.5, 0.5, 0.0, "plain"),
    "focal": (1.0, 0.5, 0.5, 1.0, "focal"),
    "tversky": (1.0, 0.3, 0.7, 1.0, "plain"),
    "boundary": (1.0, 0.5, 0.5, 1.0, "border"),
}


class SegmentationLoss(nn.Module):
    """The weighted sum of an overlap term and a cross-entropy term, computed in float32, 2D or 3D.

    `forward` takes logits (B, K, *spatial) of any float type and labels int64 (B, *spatial) in 0..K-1 or IGNORED, and
    returns a scalar. With deep supervision it takes a list of logits, from full resolution to coarse; each counts half as much as
    the one before (Isensee 2021).

    The overlap is computed over the whole batch for each class, and averaged over the classes that the batch contains.
    A class that the batch lacks has no overlap that could improve. The cross-entropy punishes its false positives.

    overlap, entropy: the weights of the two terms. false_positives, misses: the costs of either mistake in the overlap.
    kind: how the cross-entropy weighs pixels. "plain" weighs all alike, "focal" confident ones less (Lin 2017, gamma
    2), "border" those near a border between classes more (after the weight map of Ronneberger 2015). class_weights and
    ignores: see `make_loss`.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        overlap: float,
        false_positives: float,
        misses: float,
        entropy: float,
        kind: str,
        class_weights: Sequence[float] | None = None,
        ignores: bool = False,
    ) -> None:
        super().__init__()
        self.ignores = ignores
        self.overlap, self.false_positives, self.misses = overlap, false_positives, misses
        self.entropy, self.kind = entropy, kind
        weights = torch.tensor(class_weights) if class_weights else None
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor | list[Tensor], labels: Tensor) -> Tensor:
        if isinstance(logits, Tensor):
            return self._single(logits, labels)
        total, counted = labels.new_zeros((), dtype=torch.float32), 0.0
        for level, item in enumerate(logits):
            fitting = labels
            if item.shape[2:] != labels.shape[1:]:
                fitting = F.interpolate(labels.unsqueeze(1).float(), item.shape[2:], mode="nearest-exact")[:, 0].long()
            total = total + self._single(item, fitting) * 0.5**level
            counted += 0.5**level
        return total / counted

    def _single(self, logits: Tensor, labels: Tensor) -> Tensor:
        # Softmax and sums over many pixels lose too much in bfloat16. Sums are quickest if each class is contiguous.
        log = logits.float().contiguous().log_softmax(1)
        border = 1 + BORDER_WEIGHT * near_border(labels) if self.kind == "border" else None
        if self.ignores:
            seen = labels != IGNORED
            if not seen.any():
                return log.sum() * 0
            # What is left of the pixels has one axis: the terms below know no neighbours.
            log, labels = log.movedim(1, -1)[seen].T[None], labels[seen][None]
            border = border if border is None else border[seen][None]
        # The log probability of the class that each pixel has.
        chosen = log.gather(1, labels.unsqueeze(1)).squeeze(1)
        loss = log.new_zeros(())
        if self.overlap:
            loss = loss + self.overlap * (1 - self._overlap(log, chosen, labels))
        if self.entropy:
            loss = loss + self.entropy * self._entropy(chosen, labels, border)
        return loss

    def _overlap(self, log: Tensor, chosen: Tensor, labels: Tensor) -> Tensor:
        classes = log.shape[1]
        predicted = log.exp().sum([0, *range(2, log.ndim)])
        counted = counted_by_masks if log.is_cuda else counted_by_place
        hit, real = counted(chosen.exp(), labels, classes)
        weighted = hit + self.false_positives * (predicted - hit) + self.misses * (real - hit)
        present = (real > 0).float()
        return (hit / weighted.clamp_min(1e-6) * present).sum() / present.sum()

    def _entropy(self, chosen: Tensor, labels: Tensor, border: Tensor | None) -> Tensor:
        if self.kind == "focal":
            chosen = chosen * (1 - chosen.exp()).square()
        weights = None if self.class_weights is None else self.class_weights[labels]
        if border is not None:
            weights = border if weights is None else weights * border
        return -chosen.mean() if weights is None else -(chosen * weights).sum() / weights.sum()


def counted_by_place(values: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sum `values` over the pixels of each class, and count these pixels: float32 (K,) twice.

    Scattering into one place per class is the quickest way on a CPU.
    """
    flat = labels.flatten()
    return values.new_zeros(classes).scatter_add(0, flat, values.flatten()), torch.bincount(
        flat, minlength=classes
    ).float()


def counted_by_masks(values: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the same as `counted_by_place`, in the quickest way on a GPU: with a mask for each class.

    Scattering on a GPU would make millions of pixels queue up for a few places, in another order each time, and
    `bincount` would make the program wait for the largest label.
    """
    masks = [(labels == index).float() for index in range(classes)]
    return torch.stack([(values * mask).sum() for mask in masks]), torch.stack([mask.sum() for mask in masks])


def near_border(labels: Tensor, reach: int = BORDER_REACH) -> Tensor:
    """Mark pixels of labels (B, *spatial) with another class at most `reach` pixels away per axis: float32, 0 or 1."""
    small = labels.to(torch.uint8)
    return (_spread(small, torch.maximum, reach) != _spread(small, torch.minimum, reach)).float()


def _spread(values: Tensor, extreme: Callable[[Tensor, Tensor], Tensor], reach: int) -> Tensor:
    """Return the extreme (maximum or minimum) of each pixel's neighbourhood within `reach`, computed axis by axis.

    On bytes this is far quicker than max pooling, which needs floats.
    """
    for axis in range(1, values.ndim):
        for _ in range(reach):
            last = values.shape[axis] - 1
            pair = extreme(values.narrow(axis, 0, last), values.narrow(axis, 1, last))
            ends = values.narrow(axis, 0, 1), values.narrow(axis, last, 1)
            # Entry i of `pair` covers pixels i and i + 1, so the entries on both sides of a pixel together cover three.
            values = extreme(torch.cat([ends[0], pair], axis), torch.cat([pair, ends[1]], axis))
    return values


def make_loss(name: str, *, class_weights: Sequence[float] | None = None, ignores: bool = False) -> SegmentationLoss:
    """Make the loss of this name in ml_core.planning.hyperparameters.LOSSES. Raises ConfigError if there is none.

    class_weights: the classes' weights in the cross-entropy, in the order of the network's outputs; None: all equal.
    ignores: True if labels may hold IGNORED. Such pixels are then left out of the loss, which takes some time.
    """
    if name not in _CHOICES:
        raise ConfigError("loss", f"There is no loss {name!r}.", f"Choose one of: {', '.join(_CHOICES)}.")
    return SegmentationLoss(*_CHOICES[name], class_weights=class_weights, ignores=ignores)
