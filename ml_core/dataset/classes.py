"""Which classes the masks of a dataset hold: the value, the name and the colour of each, learned file by file."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from ml_core.dataset.findings import MIXED_CODING
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

Codes = dict[int, int]  # of masks in colours: r<<16 | g<<8 | b → label value


class LabelClass(TypedDict):
    """What one value of the masks stands for."""

    value: int
    name: str
    color: str
    """#rrggbb."""


class ClassTable:
    """The label values seen so far, with the colour that each keeps; colours become the values 0 (black), 1, 2, …

    The same masks in the same order give the same table. rows: [{value, name, color}] of an earlier version of the dataset,
    and `codes` of its colours; names: value → name, where somebody has told them.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]] = (),
        codes: Codes | None = None,
        names: Mapping[int, str] | None = None,
    ) -> None:
        self._colors: dict[int, str] = {row["value"]: row["color"] for row in rows}
        self.told_names = dict(names or {})
        self._names: dict[int, str] = {row["value"]: row["name"] for row in rows} | self.told_names
        self._codes: Codes = {0: 0, **(codes or {})}
        # Numbers may join masks that were colours, since those are stored as numbers; colours cannot join numbers.
        self._coding: str | None = "values" if rows and not codes else None

    def __len__(self) -> int:
        return len(self._colors)

    def learn(self, mask: Mask, counts: Mapping[int, int]) -> tuple[NDArray[Any], dict[int, int]]:
        """The mask in label values, and its pixels per value; `counts` are those of the mask as its file has it.

        Raises ImageError (mixed_coding) where masks are coded in two ways.
        """
        is_rgb = mask.coding == "rgb"
        if is_rgb or len(counts) > 1:  # an empty mask fits both
            if self._coding not in (None, mask.coding):
                raise MIXED_CODING.error()
            self._coding = mask.coding
        if is_rgb:
            for code in counts:
                value = self._codes.setdefault(code, max([*self._codes.values(), *self._colors]) + 1)
                self._colors.setdefault(value, f"#{code:06x}")
        by_value = {self._codes[code] if is_rgb else code: count for code, count in counts.items()}
        for value in by_value:
            own = (mask.palette or {}).get(value)
            self._colors.setdefault(value, own or _next_color(len(self._colors)))
        return (_values(mask.values, counts, self._codes) if is_rgb else mask.values), by_value

    def colors(self) -> dict[int, str]:
        """Of each value seen."""
        return self._colors

    def codes(self) -> Codes:
        """{} where masks are coded in numbers."""
        return self._codes if len(self._codes) > 1 else {}

    def rows(self, used: set[int]) -> list[LabelClass]:
        """[{value, name, color}] of the values in use, ascending; the lowest is background."""
        ordered = sorted(used)
        return [
            {
                "value": value,
                "name": self._names.get(value) or ("background" if value == ordered[0] else f"class {value}"),
                "color": self._colors[value],
            }
            for value in ordered
        ]


def label_values(mask: Mask, codes: Codes) -> NDArray[Any]:
    """A mask as label values, which it has already where it is no mask in colours. Raises TrainingError for an unknown colour."""
    if mask.coding != "rgb":
        return mask.values
    present = np.unique(mask.values).tolist()
    if strange := [f"#{code:06x}" for code in present if code not in codes]:
        reason = f"The mask has colours that are no class: {', '.join(strange[:5])}."
        raise TrainingError("unknown_label", reason, "Code all masks in the same way.")
    return _values(mask.values, present, codes)


def _values(colors: NDArray[Any], present: Iterable[int], codes: Codes) -> NDArray[Any]:
    """`present`: the colours that occur, ascending."""
    known = list(present)
    values: NDArray[Any] = np.array([codes[code] for code in known])[np.searchsorted(known, colors)]
    return values


def _next_color(index: int) -> str:
    if index < len(COLORS):
        return COLORS[index]
    # Hues a golden ratio apart stay distinct however many there are.
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.7, 0.9)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
