"""The device, precision and memory layout that networks run with."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def pick_device() -> torch.device:
    """Return the GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return a context in which networks compute in bfloat16 for `precision` "bf16", and in float32 otherwise."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def memory_layout(dimensions: int) -> torch.memory_format:
    """Return the memory layout of images (N, C, *spatial) of 2 or 3 dimensions and of their networks: channels last."""
    return torch.channels_last_3d if dimensions == 3 else torch.channels_last


def most_probable(scores: Tensor) -> Tensor:
    """Return the class with the highest score: (N, K, *spatial) → (N, *spatial) int64."""
    # `argmax` would do the same, but is ten times slower on a CPU.
    return scores.max(1).indices
