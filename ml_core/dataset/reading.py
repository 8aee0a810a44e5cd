"""How the masks of a dataset are read: which value is background, which are ignored, and which are one class.

A mask says none of this by itself. `ml_core.dataset.survey` decides it from the masks of a whole dataset, and a user may
say otherwise. A value of a mask is written here as its file has it: a number, or a colour as "#rrggbb".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_core.dataset.findings import NEEDS_THE_FILES, UNKNOWN_VALUE, Issue
from ml_core.documents import Document
from ml_core.io import Mask

COLOUR = re.compile(r"#[0-9a-f]{6}")
MaskValue = int | str
"""A number, or a colour as "#rrggbb"."""
Codes = dict[str, int]
"""Value of a mask, as text → label value. {}: each number is its own label value."""

OTHERS = "*"
"""Stands in `Codes` for every value that is not named: the numbers of single objects."""
OBJECT = 1
"""Label value of an object, where masks number their objects and background is 0."""
IGNORED_COLOUR = 255
"""Label value of pixels in an ignored colour."""


@dataclass(frozen=True)
class Reading(Document):
    """What is known of how masks are read. None: the masks decide."""

    background: MaskValue | None = None
    """The value where no structure is."""
    ignore: list[MaskValue] | None = None
    """Values of pixels that nobody labelled: they are neither learnt from nor scored."""
    merge: list[list[MaskValue]] | None = None
    """Groups of values that are one class; the first of each group is its label value."""
    objects: bool | None = None
    """Whether values number single objects (cells, nuclei), all of one class."""

    def fault(self) -> str | None:
        """What is wrong with the values, as a sentence; None if each is a number or a colour, and is named once."""
        named = [[] if self.background is None else [self.background], self.ignore or [], *(self.merge or [])]
        for value in [value for group in named for value in group]:
            is_number = isinstance(value, int) and not isinstance(value, bool) and -(2**31) <= value < 2**31
            if not (is_number or (isinstance(value, str) and COLOUR.fullmatch(value))):
                return f'{str(value)[:50]} is no value of a mask. Write a number, or a colour in small letters such as "#ff0000".'
        if set(named[0]) & set(named[1]):
            return "The background cannot be ignored. Name another value."
        return None

    def or_else(self, other: Reading) -> Reading:
        """This reading, with the other's answers where this one has none."""
        left = {name: getattr(other, name) for name in vars(self) if getattr(self, name) is None}
        return replace(self, **left)


@dataclass(frozen=True)
class Decision:
    """A reading in which nothing is open, and what follows from it for label values."""

    reading: Reading
    in_colours: bool = False
    """Whether masks are coded in colours."""
    background: int = 0
    """Label value of the background."""
    ignored: tuple[int, ...] = ()
    """Label values that are no class."""
    codes: Codes = field(default_factory=dict)
    issues: tuple[Issue, ...] = ()
    """What was guessed, for the user to confirm or to correct."""
    is_plain: bool = True
    """Whether a mask's numbers are its label values and the lowest of them is background."""


IGNORED_OBJECT = 2
"""Label value of ignored pixels, where masks number their objects."""


def settled(reading: Reading, background: int, ignored: Sequence[int], codes: Codes) -> Decision:
    """The decision of an earlier check, from what was kept of it. Nothing of it is a guess any more."""
    return Decision(reading, are_colours(codes), background, tuple(ignored), codes, (), is_plain=False)


def changed(decision: Decision, asked: Reading) -> Decision:
    """The decision with another background and other ignored values, where a user has said so.

    Raises DatasetRefusedError for what needs the masks as they were uploaded.
    """
    reading = asked.or_else(decision.reading)
    if reading == decision.reading:
        return decision
    before = decision.reading
    if (reading.merge, reading.objects) != (before.merge, before.objects) or reading.objects:
        raise NEEDS_THE_FILES.refusal()
    background, ignored = decision.background, decision.ignored
    if asked.background is not None:
        background = _label_of(asked.background, decision.codes)
    if asked.ignore is not None:
        ignored = tuple(_label_of(value, decision.codes) for value in asked.ignore)
    return replace(decision, reading=reading, background=background, ignored=ignored, issues=(), is_plain=False)


def _label_of(value: MaskValue, codes: Codes) -> int:
    key = key_of(value)
    if key in codes:
        return codes[key]
    if key.startswith("#"):
        raise UNKNOWN_VALUE.refusal(value=value, held=", ".join(list(codes)[:10]) or "numbers")
    return int(key)


def key_of(value: MaskValue) -> str:
    """A value as `Codes` name it."""
    return str(value)


def colour_key(packed: int) -> str:
    """r<<16 | g<<8 | b → "#rrggbb"."""
    return f"#{packed:06x}"


def keys_of(mask: Mask, present: Iterable[int], *, in_colours: bool) -> list[str]:
    """The texts of the values that are present in a mask. In a dataset in colours a grey level is a colour, too."""
    if mask.coding == "rgb":
        return [colour_key(value) for value in present]
    return [colour_key(value * 0x010101) if in_colours and 0 <= value <= 255 else str(value) for value in present]


def are_colours(codes: Codes) -> bool:
    return any(key.startswith("#") for key in codes)


def relabelled(values: NDArray[Any], present: Sequence[int], labels: Sequence[int]) -> NDArray[Any]:
    """An array of the values `present` (ascending), with the label at the same position in place of each."""
    if list(present) == list(labels):
        return values
    low, high = min(labels), max(labels)
    kind = np.uint8 if low >= 0 and high <= 255 else np.uint16 if low >= 0 and high <= 65535 else np.int32
    table: NDArray[Any] = np.asarray(labels, dtype=kind)
    return table[np.searchsorted(np.asarray(present), values)]
