"""The class table of a dataset: the value, name and colour of each class, collected mask by mask."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from ml_core.dataset.findings import MIXED_CODING
from ml_core.dataset.reading import OTHERS, Codes, Decision, Reading, are_colours, keys_of, relabelled
from ml_core.errors import TrainingError
from ml_core.io import Mask

COLORS = [
    "#495057",
    "#f59f00",
    "#1c7ed6",
    "#37b24d",
    "#e64980",
    "#7048e8",
    "#0ca678",
    "#f76707",
    "#22b8cf",
    "#a61e4d",
]


class LabelClass(TypedDict):
    """One class: a label value, and the name and colour that it stands for."""

    value: int
    name: str
    color: str
    """#rrggbb."""


class ClassTable:
    """The label values seen so far, with the name and the colour of each.

    `rows` ([{value, name, color}], the background first) come from an earlier version of the dataset. `decision` says
    how masks are read. `names` maps values to the names that the user gave.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]] = (),
        decision: Decision | None = None,
        names: Mapping[int, str] | None = None,
    ) -> None:
        self.decision = decision or Decision(Reading())
        # Whether masks of an earlier version, or of a training, were read before.
        self.has_history = bool(rows)
        self._colors: dict[int, str] = {row["value"]: row["color"] for row in rows}
        self.told_names = dict(names or {})
        self._names: dict[int, str] = {row["value"]: row["name"] for row in rows} | self.told_names
        self._codes: Codes = dict(self.decision.codes)
        # A decided background is a class even while no mask has shown it.
        if not self.decision.is_plain:
            own = next((key for key, label in self._codes.items() if label == self.background and key[0] == "#"), "")
            self._colors.setdefault(self.background, own or _next_color(0))

    def __len__(self) -> int:
        return len(self._colors)

    def learn(self, mask: Mask, counts: Mapping[int, int]) -> tuple[NDArray[Any], dict[int, int]]:
        """Add the values of a mask, and return the mask in label values and its number of pixels per label value.

        `counts` are the pixels per value (or packed colour) as the file stores them. A value that no earlier mask had
        becomes a class. Raises ImageError mixed_coding if some masks store colours and others numbers.
        """
        present = sorted(counts)
        keys = keys_of(mask, present, in_colours=self.decision.in_colours)
        if self.decision.in_colours:
            self._add_colours(mask, keys)
        elif mask.coding == "rgb":
            raise MIXED_CODING.error()
        labels = labels_of(keys, self._codes)
        by_label: dict[int, int] = {}
        for value, label in zip(present, labels, strict=True):
            by_label[label] = by_label.get(label, 0) + counts[value]
            if label not in self.decision.ignored:
                own = (mask.palette or {}).get(value)
                self._colors.setdefault(label, own or _next_color(len(self._colors)))
        return relabelled(mask.values, present, labels), by_label

    def know(self, labels: Iterable[int]) -> None:
        """Give a colour to each label value of a stored mask that has none, such as one that is ignored no longer."""
        for label in labels:
            if label not in self.decision.ignored and label not in self._colors:
                self._colors[label] = _next_color(len(self._colors))

    def _add_colours(self, mask: Mask, keys: list[str]) -> None:
        unknown = [key for key in keys if key not in self._codes]
        # Numbers that are no grey of the coloured masks: somebody has coded this mask otherwise.
        if unknown and (mask.coding != "rgb" or not all(key.startswith("#") for key in unknown)):
            raise MIXED_CODING.error()
        for key in unknown:
            taken = set(self._codes.values()) | set(self._colors)
            self._codes[key] = next(value for value in count() if value not in taken)
        for key in keys:
            if self._codes[key] not in self.decision.ignored:
                self._colors.setdefault(self._codes[key], key)

    @property
    def background(self) -> int:
        """Label value of the background: the decided one, or the lowest so far while nothing is decided."""
        if self.decision.is_plain and self._colors:
            return min(self._colors)
        return self.decision.background

    def colors(self) -> dict[int, str]:
        """Label value → "#rrggbb" of each class seen, the background first."""
        first = self.background
        return {value: self._colors[value] for value in sorted(self._colors, key=lambda value: (value != first, value))}

    def codes(self) -> Codes:
        """{} where each number in the masks is its own label value."""
        return self._codes

    def rows(self, used: set[int]) -> list[LabelClass]:
        """[{value, name, color}] of the label values in use: the background, then the others ascending."""
        first = self.background
        ordered = sorted(used, key=lambda value: (value != first, value))
        return [
            {"value": value, "name": self._name(value, is_background=value == first), "color": self._colors[value]}
            for value in ordered
        ]

    def _name(self, value: int, *, is_background: bool) -> str:
        """The name that a person gave, or a new one. A name of ours goes when another class becomes the background."""
        default = "background" if is_background else "object" if self.decision.reading.objects else f"class {value}"
        given = self._names.get(value) or default
        return default if given in ("background", f"class {value}") else given


def labels_of(keys: Iterable[str], codes: Codes) -> list[int]:
    """The label value of each value of a mask. Raises TrainingError unknown_label for a colour that is no class."""
    labels, unknown = [], []
    for key in keys:
        if key in codes:
            labels.append(codes[key])
        elif OTHERS in codes:
            labels.append(codes[OTHERS])
        elif key.startswith("#"):
            unknown.append(key)
        else:
            labels.append(int(key))
    if unknown:
        reason = f"The mask has colours that are no class: {', '.join(unknown[:5])}."
        raise TrainingError("unknown_label", reason, "Code all masks in the same way.")
    return labels


def reference_values(mask: Mask, codes: Codes, labels: Iterable[int]) -> NDArray[Any]:
    """Convert a reference mask to label values: it is coded like the masks of the training, or in the `labels` themselves.

    Raises TrainingError unknown_label for a colour that is no class.
    """
    if mask.coding == "values" and set(np.unique(mask.values).tolist()) <= set(labels):
        return mask.values
    return label_values(mask, codes)


def label_values(mask: Mask, codes: Codes) -> NDArray[Any]:
    """Convert a mask to label values of the same shape. Without `codes`, a mask of numbers is returned as it is.

    Raises TrainingError unknown_label for a colour that is not in `codes`.
    """
    if not codes and mask.coding == "values":
        return mask.values
    present = np.unique(mask.values).tolist()
    keys = keys_of(mask, present, in_colours=are_colours(codes))
    return relabelled(mask.values, present, labels_of(keys, codes))


def _next_color(index: int) -> str:
    """The colour "#rrggbb" of the class that is added as number `index`."""
    if index < len(COLORS):
        return COLORS[index]
    # Hues that are a golden ratio apart stay distinct for any number of classes.
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.7, 0.9)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
