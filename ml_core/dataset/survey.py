"""Decides how the masks of a dataset are read, from what all of them hold together.

One mask alone does not tell: 0 and 1 in one file and 0 and 255 in another are one class that two people saved; white may be
paper or a structure; 255 beside 0, 1, 2 is the border that nobody labelled. What is decided here is said as an issue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ml_core.dataset import findings
from ml_core.dataset.findings import Issue
from ml_core.dataset.fingerprint import count_values
from ml_core.dataset.reading import (
    IGNORED_COLOUR,
    IGNORED_OBJECT,
    OBJECT,
    OTHERS,
    Codes,
    Decision,
    MaskValue,
    Reading,
    keys_of,
)
from ml_core.errors import ImageError
from ml_core.io import Mask, read_mask

FULL_SCALE = (255, 65535)
"""How programs save "yes" in 8 and in 16 bits."""
BLACK = "#000000"
VOID_COLOUR = "#e0e0c0"
"""Pascal VOC's colour of pixels that nobody labelled."""
MAX_SMALL_CLASS = 100
"""Classes are numbered 0, 1, 2, …; a full-scale value beside numbers up to this one is none of them."""
MIN_OBJECTS = 4
"""Values over background in one mask, before they may be numbers of objects."""
MIN_SINGLE_SHARE = 0.9
"""Of the looked-at values in a mask that are one connected piece each, where values number objects."""
MIN_OBJECT_PIXELS = 8
"""Median size of an object, in pixels or voxels."""
MAX_OBJECT_BOX = 4_000_000
"""Pixels or voxels of an object's bounding box."""
LOOKED_AT = 24
"""Values of a mask whose pieces are counted."""
CLEAR_SHARE = 0.6
"""Of all pixels and of the pixels at the border: a background other than the lowest value needs as much."""
STRAY_SHARE = 0.01
"""Of all pixels: what smoothing and lossy compression leave between black and white is less."""
MIN_STRAYS = 8
"""Different values between black and white; fewer are classes."""


@dataclass(frozen=True)
class MaskFacts:
    """What one mask tells about its coding."""

    keys: tuple[str, ...]
    """Its values as texts, in the order of `counts`; a grey level of a file with colours is a number."""
    colour_keys: tuple[str, ...]
    """The same where the dataset's masks are in colours."""
    is_rgb: bool
    counts: tuple[int, ...]
    """Pixels of each value."""
    border: tuple[int, ...]
    """Pixels of each value at the border of the picture or volume."""
    single_share: float
    """Of the values that were looked at, how many are one connected piece; 0 where it was not looked."""
    centres: dict[str, tuple[float, ...]]
    """Where the values that were looked at lie: the middle of each one's bounding box, 0 to 1 along each axis."""

    @classmethod
    def of(cls, mask: Mask, counts: dict[int, int]) -> MaskFacts:
        """`counts`: pixels of each value that is present, ascending."""
        present = list(counts)
        border = dict.fromkeys(present, 0)
        for axis in range(mask.values.ndim):
            for face in (0, -1):
                found, times = np.unique(mask.values.take(face, axis=axis), return_counts=True)
                for value, number in zip(found.tolist(), times.tolist(), strict=True):
                    border[value] += number
        is_many = mask.coding == "values" and len(present) > MIN_OBJECTS
        share, centres = pieces(mask.values, present) if is_many else (0.0, {})
        return cls(
            tuple(keys_of(mask, present, in_colours=False)),
            tuple(keys_of(mask, present, in_colours=True)),
            mask.coding == "rgb",
            tuple(counts.values()),
            tuple(border.values()),
            share,
            centres,
        )


def pieces(values: NDArray[Any], present: list[int]) -> tuple[float, dict[str, tuple[float, ...]]]:
    """Look at up to LOOKED_AT values over the lowest one: the share of those that are one connected piece, and where they lie."""
    foreground = present[1:]
    if not foreground or present[0] < 0 or present[-1] > 65535:
        return 0.0, {}
    boxes = ndimage.find_objects(values.astype(np.int32, copy=False))
    picked = foreground[:: -(-len(foreground) // LOOKED_AT)]
    around = np.ones((3,) * values.ndim, dtype=bool)
    single, centres = 0, {}
    for value in picked:
        box = boxes[value - 1]
        centres[str(value)] = tuple(
            (side.start + side.stop) / 2 / length for side, length in zip(box, values.shape, strict=True)
        )
        part = values[box]
        # What is so large is no single object among many.
        single += part.size <= MAX_OBJECT_BOX and ndimage.label(part == value, around)[1] == 1
    return single / len(picked), centres


def may_number_objects(facts: MaskFacts) -> bool:
    """Whether the values of a mask may be numbers of objects: several, each of them one piece of some pixels."""
    is_one_piece_each = len(facts.keys) > MIN_OBJECTS and facts.single_share >= MIN_SINGLE_SHARE
    # In noise every value is one piece, too: a single pixel.
    return is_one_piece_each and float(np.median(facts.counts[1:])) >= MIN_OBJECT_PIXELS


def has_too_many_values(mask: Mask, count: int) -> bool:
    """Whether a mask of so many values can only number objects, or is none."""
    return mask.coding == "values" and count > (
        findings.MAX_VALUES_OF_PICTURE if mask.values.ndim == 2 else findings.MAX_CLASSES
    )


def read_facts(mask_path: Path, reading: Reading | None = None) -> MaskFacts | None:
    """What a mask tells about the coding, without its image. None if the check will leave it out, and say why."""
    try:
        mask = read_mask(mask_path)
    except ImageError:
        return None
    present, numbers = count_values(mask.values)
    facts = MaskFacts.of(mask, dict(zip(present.tolist(), numbers.tolist(), strict=True)))
    may_be_objects = may_number_objects(facts) or (reading is not None and reading.objects)
    return None if has_too_many_values(mask, len(present)) and not may_be_objects else facts


class MaskSurvey:
    """Takes the facts of every mask, then decides. `reading` is what a user has said."""

    def __init__(self, reading: Reading | None = None) -> None:
        self._reading = reading or Reading()
        self._facts: list[MaskFacts] = []

    def add(self, facts: MaskFacts) -> None:
        self._facts.append(facts)

    def decide(self) -> Decision:
        """Raises DatasetRefusedError where the user's reading does not fit the masks."""
        colours = {BLACK}.union(*(facts.colour_keys for facts in self._facts if facts.is_rgb))
        fitting = [facts for facts in self._facts if facts.is_rgb or colours.issuperset(facts.colour_keys)]
        coloured = sum(facts.is_rgb for facts in self._facts)
        # Masks in numbers do not belong to a dataset in colours, and the other way round: the greater part decides.
        others = sum(len(facts.keys) > 1 for facts in self._facts) - sum(len(facts.keys) > 1 for facts in fitting)
        in_colours = coloured > 0 and coloured >= others
        read = fitting if in_colours else [facts for facts in self._facts if not facts.is_rgb]
        keys = [facts.colour_keys if in_colours else facts.keys for facts in read]
        masks = [dict(zip(names, facts.counts, strict=True)) for names, facts in zip(keys, read, strict=True)]
        borders = [dict(zip(names, facts.border, strict=True)) for names, facts in zip(keys, read, strict=True)]
        pixels, at_border = _summed(masks), _summed(borders)
        self._check_told(pixels)
        issues: list[Issue] = []
        if self._reading.objects or (not in_colours and self._number_objects(read, masks)):
            return self._objects(masks, pixels, at_border, in_colours)
        ignore = self._ignore(masks, pixels, in_colours, issues)
        for value in ignore:
            pixels.pop(str(value), None)
            at_border.pop(str(value), None)
        merge, is_smoothed = self._merge(masks, pixels, in_colours, issues)
        for group in merge:
            for value in group[1:]:
                pixels[str(group[0])] += pixels.pop(str(value), 0)
                at_border[str(group[0])] += at_border.pop(str(value), 0)
        if not pixels:
            raise findings.NOTHING_LABELLED.refusal()
        background = self._background(pixels, at_border, in_colours, issues)
        reading = Reading(_value(background), ignore, merge, objects=False)
        return _decision(reading, pixels, in_colours, is_smoothed, issues)

    def _check_told(self, pixels: Counter[str]) -> None:
        """Refuse a reading with values that no mask has: the user meant something else."""
        told = [value for group in self._reading.merge or [] for value in group] + (self._reading.ignore or [])
        if self._reading.background is not None:
            told.append(self._reading.background)
        for value in told:
            if str(value) not in pixels and not (value == 0 and self._reading.objects):
                held = ", ".join(sorted(pixels, key=_order)[:10])
                raise findings.UNKNOWN_VALUE.refusal(value=value, held=held)

    def _told(self) -> set[str]:
        """The values that the user has named: no guess touches them."""
        background = [] if self._reading.background is None else [self._reading.background]
        return {str(value) for value in [*background, *(self._reading.ignore or [])]}

    def _number_objects(self, read: list[MaskFacts], masks: list[dict[str, int]]) -> bool:
        if self._reading.objects is not None or self._reading.merge:
            return False
        many = [facts for facts in read if len(facts.keys) > MIN_OBJECTS]
        alike = [facts for facts in many if may_number_objects(facts)]
        if len(alike) < 2 or len(alike) < 0.8 * len(many):
            return False
        sizes: list[dict[str, tuple[float, ...]]] = [
            {key: (float(np.log(count)),) for key, count in mask.items() if key != "0"} for mask in masks
        ]
        return not _tells_values_apart(sizes) and not _tells_values_apart([facts.centres for facts in alike])

    def _objects(
        self, masks: list[dict[str, int]], pixels: Counter[str], border: Counter[str], in_colours: bool
    ) -> Decision:
        """Every value that is neither background nor ignored is the number of an object."""
        told = self._reading.background
        background = str(told) if told is not None else self._background(pixels, border, in_colours, [])
        ignore = self._reading.ignore or []
        issue = findings.OBJECT_NUMBERS.issue("masks", most=max(len(mask) - 1 for mask in masks))
        return Decision(
            Reading(_value(background), ignore, [], objects=True),
            in_colours,
            codes={background: 0} | {str(value): IGNORED_OBJECT for value in ignore} | {OTHERS: OBJECT},
            ignored=(IGNORED_OBJECT,) if ignore else (),
            issues=() if self._reading.objects else (issue,),
            is_plain=False,
        )

    def _merge(
        self, masks: list[dict[str, int]], pixels: Counter[str], in_colours: bool, issues: list[Issue]
    ) -> tuple[list[list[MaskValue]], bool]:
        """(groups of values, whether they are the greys that smoothing leaves)"""
        if self._reading.merge is not None:
            return self._reading.merge, False
        if in_colours or self._told() & {"1", *map(str, FULL_SCALE)}:
            return [], False
        if group := _one_and_full_scale(masks, pixels, issues):
            return [group], False
        strays = _strays(pixels, issues)
        return strays, bool(strays)

    def _ignore(
        self, masks: list[dict[str, int]], pixels: Counter[str], in_colours: bool, issues: list[Issue]
    ) -> list[MaskValue]:
        if self._reading.ignore is not None:
            return self._reading.ignore
        found = [VOID_COLOUR] if in_colours and VOID_COLOUR in pixels and len(pixels) > 2 else []
        guessed: list[MaskValue] = list(found) if in_colours else list(_void_numbers(masks, pixels))
        values = [value for value in guessed if str(value) not in self._told()]
        total = pixels.total()
        for value in values:
            share = 100 * pixels[str(value)] / total
            issues.append(findings.IGNORED_VALUE.issue("masks", value=value, share=f"{share:.2g}"))
        return values

    def _background(self, pixels: Counter[str], border: Counter[str], in_colours: bool, issues: list[Issue]) -> str:
        if self._reading.background is not None:
            return str(self._reading.background)
        ordered = sorted(pixels, key=_order)
        lowest = ordered[0]
        # Black is what a colour mask is filled with before anybody draws, where it occurs at all.
        usual = BLACK if in_colours and BLACK in pixels else lowest
        most, most_at_border = pixels.most_common(1)[0][0], border.most_common(1)[0][0]
        share = pixels[most] / pixels.total()
        border_share = border[most] / max(1, border.total())
        facts = {
            "share": f"{100 * share:.0f}",
            "border": f"{100 * border_share:.0f}",
            "value": most,
            "usual": usual,
        }
        is_clear = min(share, border_share) >= CLEAR_SHARE
        if most == usual or len(pixels) < 2:
            return usual
        # Without black, no colour is background by custom: then the most frequent one is it in any case.
        has_custom = not in_colours or usual == BLACK
        if most == most_at_border and (is_clear or not has_custom):
            issues.append(findings.BACKGROUND_CHOSEN.issue("masks", **facts))
            return most
        issues.append(findings.BACKGROUND_UNSURE.issue("masks", **facts))
        return usual


def _summed(rows: Iterable[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row)
    return total


def _order(key: str) -> tuple[int, int]:
    """Sort key of a value's text: numbers by their size, colours by theirs."""
    return (1, int(key[1:], 16)) if key.startswith("#") else (0, int(key))


def _value(key: str) -> MaskValue:
    return key if key.startswith("#") else int(key)


def _tells_values_apart(masks: list[dict[str, tuple[float, ...]]]) -> bool:
    """Whether a property (size, place) belongs to a value, as with organs, and not to each object anew, as with cells.

    Of the variance of a property over all masks the part that lies between values is near 1 for organs. For numbers of
    objects it is what chance gives: 1 / number of masks. Objects are often numbered row by row, so that one axis tells
    them apart; of a place every axis has to.
    """
    rows: dict[str, list[tuple[float, ...]]] = {}
    for mask in masks:
        for key, found in mask.items():
            rows.setdefault(key, []).append(found)
    shared = [np.asarray(row) for row in rows.values() if len(row) > 1]
    if len(shared) < MIN_OBJECTS:
        return False
    everything = np.concatenate(shared)
    total = everything.var(axis=0)
    if (total < 1e-9).any():
        return False
    between = np.concatenate([np.broadcast_to(row.mean(axis=0), row.shape) for row in shared]).var(axis=0)
    by_chance = 1 / float(np.mean([len(row) for row in shared]))
    return bool((between / total > (1 + by_chance) / 2).all())


def _one_and_full_scale(masks: list[dict[str, int]], pixels: Counter[str], issues: list[Issue]) -> list[MaskValue]:
    """[kept value, other value] where some masks say yes by 1 and others by 255, and no mask holds both."""
    foreground = sorted(int(key) for key in pixels if key != "0")
    if len(foreground) != 2 or foreground[0] != 1 or foreground[1] not in FULL_SCALE:
        return []
    one, full = (str(value) for value in foreground)
    with_one, with_full = (sum(key in mask for mask in masks) for key in (one, full))
    if any(one in mask and full in mask for mask in masks):
        return []
    kept, other = (foreground[1], 1) if with_full >= with_one else (1, foreground[1])
    issues.append(findings.MERGED_VALUES.issue("masks", ones=with_one, fulls=with_full, full=foreground[1], kept=kept))
    return [kept, other]


def _strays(pixels: Counter[str], issues: list[Issue]) -> list[list[MaskValue]]:
    """[[0, dark greys…], [255, light greys…]] where smoothing has left a few pixels between black and white."""
    values = sorted(int(key) for key in pixels)
    if not {0, 255} <= set(values) or values[0] < 0 or values[-1] > 255:
        return []
    between = [value for value in values if 0 < value < 255]
    share = sum(pixels[str(value)] for value in between) / pixels.total()
    if len(between) < MIN_STRAYS or share > STRAY_SHARE:
        return []
    issues.append(findings.STRAY_VALUES.issue("masks", count=len(between), share=f"{100 * share:.2g}"))
    dark, light = [value for value in between if value < 128], [value for value in between if value >= 128]
    groups: list[list[MaskValue]] = [[0, *dark], [255, *light]]
    return [group for group in groups if len(group) > 1]


def _void_numbers(masks: list[dict[str, int]], pixels: Counter[str]) -> list[int]:
    """Numbers that stand for "nobody labelled this": negative ones, and full scale beside small class numbers."""
    values = sorted(int(key) for key in pixels)
    void = [value for value in values if value < 0]
    small = [value for value in values if 0 <= value <= MAX_SMALL_CLASS]
    for full in FULL_SCALE:
        is_alone = values[-1] == full and len(small) + len(void) == len(values) - 1
        follow = all(after - before == 1 for before, after in pairwise(small))
        if is_alone and follow and len(small) >= 2 and any(_beside_others(mask, full) for mask in masks):
            void.append(full)
    return void if len(values) - len(void) >= 2 else []


def _beside_others(mask: dict[str, int], full: int) -> bool:
    return str(full) in mask and any(int(key) > 0 and key != str(full) for key in mask)


def _decision(
    reading: Reading, pixels: Counter[str], in_colours: bool, is_smoothed: bool, issues: list[Issue]
) -> Decision:
    """What the reading means for label values. `pixels` has the classes alone, merged ones under their first value.

    is_smoothed: whether greys are set to black and white; then also those that only a later mask has.
    """
    background, ignore, merge = str(reading.background), reading.ignore or [], reading.merge or []
    codes: Codes = {}
    if in_colours:
        others = sorted((key for key in pixels if key != background), key=_order)
        codes = {background: 0} | {key: number for number, key in enumerate(others, start=1)}
        codes |= {str(value): IGNORED_COLOUR for value in ignore}
        codes |= {str(value): codes[str(group[0])] for group in merge for value in group[1:]}
        ignored = (IGNORED_COLOUR,) if ignore else ()
        return Decision(reading, True, 0, ignored, codes, tuple(issues), is_plain=False)
    for group in merge:
        codes |= {str(value): int(group[0]) for value in group}
    if is_smoothed:
        codes = {str(value): 0 if value < 128 else 255 for value in range(256)}
    lowest = min((int(key) for key in pixels), default=0)
    is_plain = not merge and not ignore and int(background) == lowest
    void = tuple(int(value) for value in ignore)
    return Decision(reading, False, int(background), void, codes, tuple(issues), is_plain)
