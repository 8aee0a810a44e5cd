"""A case: one image with its mask, and the positions of its classes in the class table."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_core.dataset.classes import label_values
from ml_core.dataset.reading import Codes
from ml_core.errors import TrainingError
from ml_core.io import Mask
from ml_core.measures.metrics import IGNORED


@dataclass(frozen=True)
class Case:
    """One image and its mask on disk."""

    id: int
    name: str
    image: Path
    mask: Path
    group: str = ""
    """What must stay on one side of a split, such as the patient; "" if nothing is known."""
    key: str = ""
    """The content of the image and of the mask, separated by a space, such as their checksums. Caches rely on it."""
    codes: Codes = field(default_factory=dict, compare=False)
    """The label value of each value in the mask (ml_core.dataset.reading); {} if each is its own."""

    @property
    def mark(self) -> str:
        """A hash of the image alone: the same image has the same mark in every dataset and with every mask."""
        return hashlib.sha256((self.key.partition(" ")[0] or str(self.image.resolve())).encode()).hexdigest()[:16]

    def indices(self, mask: Mask, class_values: list[int], ignored: Sequence[int] = ()) -> NDArray[np.uint8]:
        """Convert the mask of this case to positions in `class_values`, uint8 of the mask's shape.

        A label value in `ignored` becomes IGNORED. Raises TrainingError unknown_label for a value that is no class.
        """
        return label_indices(label_values(mask, self.codes), class_values, self.name, ignored)


def label_indices(
    values: NDArray[Any], class_values: Sequence[int], name: str, ignored: Sequence[int] = ()
) -> NDArray[np.uint8]:
    """Convert label values to positions in `class_values`, uint8 of the same shape; those in `ignored` become IGNORED.

    `name` is the case's name in the message. Raises TrainingError unknown_label for a value that is no class.
    """
    known = np.array([*class_values, *ignored])
    order = np.argsort(known, kind="stable")
    places = np.clip(np.searchsorted(known[order], values), 0, len(known) - 1)
    if not np.array_equal(known[order][places], values):
        unknown = np.setdiff1d(np.unique(values), known)[:5].tolist()
        raise TrainingError(
            "unknown_label",
            f"The mask of {name} has values that are no class: {unknown}.",
            "Code all masks in the same way.",
        )
    indices = np.append(np.arange(len(class_values)), np.full(len(ignored), IGNORED)).astype(np.uint8)
    result: NDArray[np.uint8] = indices[order][places]
    return result


def spread_order(count: int) -> list[int]:
    """Order the numbers 0 to count - 1 so that the first few, however many, are spread evenly over the range."""
    # Steps of the golden ratio keep the gaps even for every number of steps.
    return [int(index) for index in np.argsort([index * 0.618034 % 1 for index in range(count)])]
