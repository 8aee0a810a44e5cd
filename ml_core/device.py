"""Where networks run, and how exactly they multiply."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
