"""Where networks run, and how exactly they multiply."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def memory_layout(dimensions: int) -> torch.memory_format:
    """In which tensors of images (N, C, *spatial) of 2 or 3 dimensions, and the networks that take them, lie in memory: channels last."""
    return torch.channels_last_3d if dimensions == 3 else torch.channels_last


def most_probable(scores: Tensor) -> Tensor:
    """(N, K, *spatial) → int64 (N, *spatial), the class with the highest score; `argmax`, which is ten times slower on a CPU."""
    return scores.max(1).indices
