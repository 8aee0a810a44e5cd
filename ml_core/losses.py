"""What a training makes small. The terms come from segmentation_models_pytorch."""

from __future__ import annotations

import torch
from segmentation_models_pytorch.losses import DiceLoss, FocalLoss, TverskyLoss
from torch import Tensor, nn

from ml_core.errors import ConfigError


class SegmentationLoss(nn.Module):
    """Weighted sum of terms. logits (B, K, H, W) of any float type, labels int64 (B, H, W) → a scalar, in float32."""

    def __init__(self, terms: list[tuple[float, nn.Module]]) -> None:
        super().__init__()
        self.weights = [weight for weight, _ in terms]
        self.terms = nn.ModuleList(term for _, term in terms)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        exact = logits.float()  # softmax and sums over many pixels lose too much in bfloat16
        return torch.stack([w * term(exact, labels) for w, term in zip(self.weights, self.terms, strict=True)]).sum()


def make_loss(name: str) -> SegmentationLoss:
    """By its name in ml_core.config.LOSSES."""
    dice, entropy = DiceLoss("multiclass"), nn.CrossEntropyLoss()
    choices: dict[str, list[tuple[float, nn.Module]]] = {
        "dice_ce": [(1.0, dice), (1.0, entropy)],
        "ce": [(1.0, entropy)],
        "dice": [(1.0, dice)],
        "focal": [(1.0, FocalLoss("multiclass")), (1.0, dice)],
        "tversky": [(1.0, TverskyLoss("multiclass", alpha=0.3, beta=0.7)), (1.0, entropy)],
    }
    if name not in choices:
        raise ConfigError("loss", f"There is no loss {name!r}.", f"Choose one of: {', '.join(choices)}.")
    return SegmentationLoss(choices[name])
