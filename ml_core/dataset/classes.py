"""The class table of a dataset: the value, name and colour of each class, collected mask by mask."""

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

# Maps the packed colours of a mask (r<<16 | g<<8 | b) to label values.
Codes = dict[int, int]


class LabelClass(TypedDict):
    """One class: a label value, and the name and colour that it stands for."""

    value: int
    name: str
    color: str
    """#rrggbb."""


class ClassTable:
    """The label values seen so far, and the colour that each keeps.

    If masks store classes as colours, black becomes the value 0 and each new colour the next number. The same masks in
    the same order give the same table. `rows` ([{value, name, color}]) and `codes` come from an earlier version of the
    dataset. `names` maps values to the names that the user gave.
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
        # Stored masks hold numbers even if their files held colours. So new masks may hold numbers in either case, but
        # colours only if the earlier files held colours.
        self._coding: str | None = "values" if rows and not codes else None

    def __len__(self) -> int:
        return len(self._colors)

    def learn(self, mask: Mask, counts: Mapping[int, int]) -> tuple[NDArray[Any], dict[int, int]]:
        """Add the values of a mask, and return the mask in label values and its number of pixels per label value.

        `counts` are the pixels per value (or packed colour) as the file stores them. Raises ImageError mixed_coding if
        some masks store colours and others numbers.
        """
        is_rgb = mask.coding == "rgb"
        # A mask of one grey value may be an empty mask of either kind, so it settles nothing.
        if is_rgb or len(counts) > 1:
            if self._coding not in (None, mask.coding):
                raise MIXED_CODING.error()
            self._coding = mask.coding
        if is_rgb:
            for code in counts:
                value = self._codes.setdefault(code, max([*self._codes.values(), *self._colors]) + 1)
                self._colors.setdefault(value, f"#{code:06x}")
        by_value = {self._codes[code] if is_rgb else code: count for code, count in counts.items()}
        for value in by_value:
            palette_color = (mask.palette or {}).get(value)
            self._colors.setdefault(value, palette_color or _next_color(len(self._colors)))
        return (_values(mask.values, counts, self._codes) if is_rgb else mask.values), by_value

    def colors(self) -> dict[int, str]:
        """The colour ("#rrggbb") of each value seen so far."""
        return self._colors

    def codes(self) -> Codes:
        """The label value of each packed colour; {} if the masks store numbers."""
        return self._codes if len(self._codes) > 1 else {}

    def rows(self, used: set[int]) -> list[LabelClass]:
        """Return [{value, name, color}] for the values in `used`, ascending. The lowest value is the background."""
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
    """Convert a mask to label values of the same shape. A mask that stores numbers is returned as it is.

    Raises TrainingError unknown_label for a colour that is not in `codes`.
    """
    if mask.coding != "rgb":
        return mask.values
    present = np.unique(mask.values).tolist()
    if unknown := [f"#{code:06x}" for code in present if code not in codes]:
        reason = f"The mask has colours that are no class: {', '.join(unknown[:5])}."
        raise TrainingError("unknown_label", reason, "Code all masks in the same way.")
    return _values(mask.values, present, codes)


def _values(colors: NDArray[Any], present: Iterable[int], codes: Codes) -> NDArray[Any]:
    """Replace packed colours by label values. `present` lists the colours that occur, ascending."""
    ordered = list(present)
    values: NDArray[Any] = np.array([codes[code] for code in ordered])[np.searchsorted(ordered, colors)]
    return values


def _next_color(index: int) -> str:
    """The colour "#rrggbb" of the class that is added as number `index`."""
    if index < len(COLORS):
        return COLORS[index]
    # Hues that are a golden ratio apart stay distinct for any number of classes.
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.7, 0.9)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
