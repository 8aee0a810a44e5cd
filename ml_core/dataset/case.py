"""One image with its mask, and the classes that the mask's values stand for."""

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
    """One image and its mask on disk. `key` names their content, the image's before a space and the mask's after it (such as both
    checksums), so that caches can rely on it. `codes` say which label value each value of its mask stands for; {}: its own."""

    id: int
    name: str
    image: Path
    mask: Path
    group: str = ""
    key: str = ""
    codes: Codes = field(default_factory=dict, compare=False)

    @property
    def mark(self) -> str:
        """The same for the same image under another id: in another version of a dataset, in another dataset, with a corrected mask."""
        return hashlib.sha256((self.key.partition(" ")[0] or str(self.image.resolve())).encode()).hexdigest()[:16]

    def indices(self, mask: Mask, class_values: list[int], ignored: Sequence[int] = ()) -> NDArray[np.uint8]:
        """Its mask as positions in `class_values`, IGNORED where its label value is one of `ignored`.

        Raises TrainingError for a value or colour that is no class.
        """
        return label_indices(label_values(mask, self.codes), class_values, self.name, ignored)


def label_indices(
    values: NDArray[Any], class_values: Sequence[int], name: str, ignored: Sequence[int] = ()
) -> NDArray[np.uint8]:
    """Label values → positions in `class_values`, and IGNORED for those in `ignored`. Raises TrainingError for other values."""
    known = np.array([*class_values, *ignored])
    order = np.argsort(known, kind="stable")
    places = np.clip(np.searchsorted(known[order], values), 0, len(known) - 1)
    if not np.array_equal(known[order][places], values):
        strange = np.setdiff1d(np.unique(values), known)[:5].tolist()
        raise TrainingError(
            "unknown_label",
            f"The mask of {name} has values that are no class: {strange}.",
            "Code all masks in the same way.",
        )
    indices = np.append(np.arange(len(class_values)), np.full(len(ignored), IGNORED)).astype(np.uint8)
    result: NDArray[np.uint8] = indices[order][places]
    return result


def spread_order(count: int) -> list[int]:
    """0 to count - 1 in an order of which every beginning is spread evenly."""
    return [int(index) for index in np.argsort([index * 0.618034 % 1 for index in range(count)])]
