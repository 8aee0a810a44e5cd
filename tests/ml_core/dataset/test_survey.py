"""How the masks of a dataset are read: what is decided from all of them, and what a user says instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ml_core.dataset.checks import read_pair
from ml_core.dataset.classes import ClassTable, label_values
from ml_core.dataset.findings import DatasetRefusedError
from ml_core.dataset.reading import Codes, Decision, Reading, changed, settled
from ml_core.dataset.survey import MaskFacts, MaskSurvey
from ml_core.errors import ImageError
from ml_core.io import Mask
from tests.synthetic import Array, write_png

SIDE = 32


def mask(*, background: int = 0, border: int | None = None, **squares: int) -> Mask:
    """A picture of `background` with squares of 6 pixels in a row: s<number>=value; `border` is its outermost line."""
    values = np.full((SIDE, SIDE), background, np.int32)
    for name, value in squares.items():
        row, column = divmod(int(name[1:]), 4)
        values[2 + 8 * row : 8 + 8 * row, 2 + 8 * column : 8 + 8 * column] = value
    if border is not None:
        values[0], values[-1], values[:, 0], values[:, -1] = border, border, border, border
    return Mask(values, "values", None, False, None, None)


def in_colours(found: Mask, colours: dict[int, int]) -> Mask:
    packed = np.vectorize(colours.get)(found.values).astype(np.int32)
    return Mask(packed, "rgb", None, False, None, None)


def counts_of(found: Mask) -> dict[int, int]:
    present, counts = np.unique(found.values, return_counts=True)
    return dict(zip(present.tolist(), counts.tolist(), strict=True))


def decide(*masks: Mask, reading: Reading | None = None) -> Decision:
    survey = MaskSurvey(reading)
    for each in masks:
        survey.add(MaskFacts.of(each, counts_of(each)))
    return survey.decide()


def said(decision: Decision) -> list[str]:
    return [issue.code for issue in decision.issues]


def test_plain_masks_are_left_alone() -> None:
    for masks in ([mask(s0=1), mask(s1=1)], [mask(s0=255), mask()], [mask(s0=128, s1=255)], [mask(s0=1, s1=2, s2=3)]):
        decision = decide(*masks)
        assert (decision.is_plain, decision.background, decision.codes, said(decision)) == (True, 0, {}, [])


def test_one_and_full_scale_are_one_class_of_the_more_frequent_value() -> None:
    decision = decide(mask(s0=1), mask(s0=255), mask(s1=255))
    assert (decision.codes, decision.reading.merge, said(decision)) == (
        {"255": 255, "1": 255},
        [[255, 1]],
        ["merged_values"],
    )
    assert decide(mask(s0=1), mask(s0=1), mask(s1=255)).reading.merge == [[1, 255]]
    for separate in ([mask(s0=1), mask(s0=2)], [mask(s0=128), mask(s0=255)]):
        assert decide(*separate).is_plain


def test_full_scale_beside_small_classes_is_ignored() -> None:
    decision = decide(mask(s0=1, s1=2, s2=255), mask(s0=1, s1=2))
    assert (decision.ignored, decision.background, said(decision)) == ((255,), 0, ["ignored_value"])
    assert decide(mask(s0=-1, s1=1), mask(s1=1)).ignored == (-1,)
    assert decide(mask(s0=1, s1=2, s2=255), reading=Reading(ignore=[])).is_plain


def test_white_paper_is_background() -> None:
    colours = {0: 0xFFFFFF, 1: 0xC80000, 2: 0x0000C8}
    decision = decide(*(in_colours(mask(s0=1, s1=2), colours) for _ in range(3)))
    assert decision.codes == {"#ffffff": 0, "#0000c8": 1, "#c80000": 2}
    assert said(decision) == ["background_chosen"]
    black = decide(*(in_colours(mask(s0=1, s1=2), {0: 0, 1: 0xC80000, 2: 0x0000C8}) for _ in range(3)))
    assert (black.codes["#000000"], said(black)) == (0, [])


def test_the_background_is_what_fills_most_and_is_said() -> None:
    decision = decide(mask(background=255, s0=0), mask(background=255, s3=0))
    assert (decision.background, decision.is_plain, said(decision)) == (255, False, ["background_chosen"])
    # Most of the pixels, and none of the border.
    close = decide(mask(background=255, border=0), mask(background=255, border=0))
    assert (close.background, said(close)) == (0, ["background_unsure"])
    told = decide(mask(background=255, s0=0), reading=Reading(background=0))
    assert (told.background, told.is_plain, said(told)) == (0, True, [])


def test_greys_of_a_set_in_colours_are_colours() -> None:
    colours = {0: 0, 1: 0x808080, 2: 0xFF0000}
    greys = mask(s0=0x80)
    decision = decide(in_colours(mask(s0=1, s1=2), colours), greys)
    table = ClassTable(decision=decision)
    values, _ = table.learn(greys, counts_of(greys))
    assert set(np.unique(values)) == {0, decision.codes["#808080"]}
    with pytest.raises(ImageError, match="in another way"):
        table.learn(mask(s0=7), counts_of(mask(s0=7)))


def objects(*, seed: int, count: int = 9) -> Mask:
    places = np.random.default_rng(seed).permutation(16)[:count]
    found = mask(**{f"s{place}": number for number, place in enumerate(places, start=1)})
    # Sizes differ from object to object.
    rng = np.random.default_rng(seed)
    for number in range(1, count + 1):
        rows, columns = np.nonzero(found.values == number)
        cut = rng.integers(0, 3)
        found.values[rows[rows > rows.max() - cut], columns[rows > rows.max() - cut]] = 0
    return found


def test_numbers_of_objects_are_one_class() -> None:
    masks = [objects(seed=seed, count=5 + seed) for seed in range(4)]
    decision = decide(*masks)
    assert (decision.reading.objects, decision.codes, said(decision)) == (True, {"0": 0, "*": 1}, ["object_numbers"])
    assert set(np.unique(label_values(masks[0], decision.codes))) == {0, 1}
    assert decide(*masks, reading=Reading(objects=False)).is_plain


def test_organs_of_different_sizes_are_classes() -> None:
    """Each is one piece in every mask, as objects are; but a value has about the same size everywhere."""
    masks = []
    for _ in range(4):
        values = np.zeros((64, 64), np.int32)
        for number, side in enumerate((3, 5, 9, 14, 20), start=1):
            values[1 : 1 + side, 3 * number**2 // 2 : 3 * number**2 // 2 + side] = number
        masks.append(Mask(values, "values", None, False, None, None))
    assert decide(*masks).is_plain


def test_strays_between_black_and_white_are_set_to_the_nearer() -> None:
    found = mask(s0=255)
    found.values[3, 3:6] = [250, 100, 3]
    decision = decide(found, mask(s0=255), mask(s1=255))
    assert decision.codes == {"0": 0, "3": 0, "100": 0, "255": 255, "250": 255}
    assert said(decision) == ["stray_values"]


@pytest.mark.parametrize(("kind", "count"), [(np.uint8, 200), (np.uint16, 60_000)])
def test_a_photograph_is_no_mask(tmp_path: Any, kind: Any, count: int) -> None:
    rng = np.random.default_rng(0)
    image: Array = rng.integers(0, 255, (64, 64)).astype(np.uint8)
    write_png(tmp_path / "i.png", image)
    write_png(tmp_path / "m.png", rng.integers(0, count, (64, 64)).astype(kind))
    with pytest.raises(ImageError, match="different values") as caught:
        read_pair(tmp_path / "i.png", tmp_path / "m.png", image_file="i.png", mask_file="m.png")
    assert caught.value.file == "m.png"


def test_a_later_version_may_have_another_background_and_ignored_values() -> None:
    codes: Codes = {"#000000": 0, "#00ff00": 1, "#ff0000": 2}
    before = settled(Reading("#000000", [], [], objects=False), 0, (), codes)
    after = changed(before, Reading(background="#ff0000", ignore=["#00ff00"]))
    assert (after.background, after.ignored, after.codes) == (2, (1,), codes)
    assert changed(before, Reading()) == before
    with pytest.raises(DatasetRefusedError, match="cannot merge"):
        changed(before, Reading(merge=[["#00ff00", "#ff0000"]]))


def test_facts_of_a_pair_count_the_border() -> None:
    found = mask(s0=7, border=3)
    facts = MaskFacts.of(found, counts_of(found))
    assert dict(zip(facts.keys, facts.border, strict=True)) == {"0": 0, "3": 4 * SIDE, "7": 0}
