"""One image with its mask, and the classes that the mask's values stand for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_core.errors import TrainingError


@dataclass(frozen=True)
class Case:
    """One image and its mask on disk. `key` names their content, the image's before a space and the mask's after it (such as both
    checksums), so that caches can rely on it."""

    id: int
    name: str
    image: Path
    mask: Path
    group: str = ""
    key: str = ""

    @property
    def mark(self) -> str:
        """The same for the same image under another id: in another version of a dataset, in another dataset, with a corrected mask."""
        return hashlib.sha256((self.key.partition(" ")[0] or str(self.image.resolve())).encode()).hexdigest()[:16]


def label_indices(values: NDArray[Any], class_values: list[int], name: str) -> NDArray[np.uint8]:
    """Label values → positions in `class_values` (ascending). Raises TrainingError for a value that is no class."""
    known = np.asarray(class_values)
    indices = np.clip(np.searchsorted(known, values), 0, len(known) - 1)
    if not np.array_equal(known[indices], values):
        strange = np.setdiff1d(np.unique(values), known)[:5].tolist()
        raise TrainingError(
            "unknown_label",
            f"The mask of {name} has values that are no class: {strange}.",
            "Code all masks in the same way.",
        )
    return indices.astype(np.uint8)


def spread_order(count: int) -> list[int]:
    """0 to count - 1 in an order of which every beginning is spread evenly."""
    return [int(index) for index in np.argsort([index * 0.618034 % 1 for index in range(count)])]
