"""The model that a training starts from, and whether that makes its numbers too good."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ml_core.prediction.package import read_package


@dataclass(frozen=True)
class WarmStart:
    """weights: of the earlier model's first network. learnt_from: its marks (Case.mark). caveat: a sentence, or None."""

    weights: dict[str, Tensor]
    learnt_from: set[str]
    caveat: str | None


def read_warm_start(path: Path, held_out: set[str]) -> WarmStart:
    """`held_out`: marks of the cases that the new model is measured on. Raises ConfigError for a package that cannot be read."""
    earlier = read_package(path)
    learnt_from, caveat = set(earlier.learnt_from or ()), None
    if earlier.learnt_from is None:
        caveat = "The model to start from does not say what it learnt from: if held-out cases are among that, the numbers are too good."
    elif known := held_out & learnt_from:
        caveat = (
            f"The model to start from learnt from {len(known)} of the {len(held_out)} cases that are held out here, so the numbers "
            "are too good. Start from one that was trained with this split, or from random weights."
        )
    return WarmStart(earlier.members[0], learnt_from, caveat)
