"""How the masks of a dataset are read: what is decided from all of them, and what a user says instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_core.dataset.case import Case
from ml_core.dataset.checks import DatasetCheck, ReadPair, read_pair
from ml_core.dataset.classes import ClassTable, label_values, reference_values
from ml_core.dataset.findings import DatasetRefusedError
from ml_core.dataset.folders import ReadCase
from ml_core.dataset.reading import Codes, Decision, Reading, changed, settled
from ml_core.dataset.survey import MaskFacts, MaskSurvey, read_facts
from ml_core.errors import ImageError
from ml_core.io import Image, Mask
from ml_core.io.image import Grid
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
    """Organs are one piece each, like objects. But a value has about the same size in every mask."""
    masks = []
    for _ in range(4):
        values = np.zeros((64, 64), np.int32)
        for number, side in enumerate((3, 5, 9, 14, 20), start=1):
            values[1 : 1 + side, 3 * number**2 // 2 : 3 * number**2 // 2 + side] = number
        masks.append(Mask(values, "values", None, False, None, None))
    assert decide(*masks).is_plain


def test_strays_between_black_and_white_are_set_to_the_nearer() -> None:
    found = mask(s0=255)
    found.values[2, 2:8], found.values[7, 2:5] = [250, 100, 3, 130, 90, 200], [60, 180, 20]
    decision = decide(found, mask(s0=255), mask(s1=255))
    # Greys that only a later mask has are set, too.
    assert decision.codes == {str(value): 0 if value < 128 else 255 for value in range(256)}
    assert said(decision) == ["stray_values"]


def test_small_classes_are_no_strays() -> None:
    few = mask(s0=255)
    few.values[3, 3:6] = [64, 128, 191]
    assert decide(few, mask(s0=255), mask(s1=255)).is_plain
    numbered = mask(s0=1, s1=255)
    numbered.values[3, 3:5] = [2, 3]
    decision = decide(numbered, mask(s0=1), mask(s1=255))
    assert (decision.ignored, decision.codes, said(decision)) == ((255,), {}, ["ignored_value"])


@pytest.mark.parametrize(("kind", "count"), [(np.uint8, 200), (np.uint16, 60_000)])
def test_a_photograph_is_no_mask(tmp_path: Any, kind: Any, count: int) -> None:
    rng = np.random.default_rng(0)
    image: Array = rng.integers(0, 255, (64, 64)).astype(np.uint8)
    write_png(tmp_path / "i.png", image)
    write_png(tmp_path / "m.png", rng.integers(0, count, (64, 64)).astype(kind))
    pair = read_pair(tmp_path / "i.png", tmp_path / "m.png", image_file="i.png", mask_file="m.png")
    with pytest.raises(ImageError, match="different values") as caught:
        DatasetCheck().add(pair)
    assert caught.value.file == "m.png"
    assert read_facts(tmp_path / "m.png") is None


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


def test_no_guess_touches_what_a_user_named() -> None:
    masks = [mask(s0=1, s1=255), mask(s0=1, s2=255)]
    told = decide(*masks, reading=Reading(background=255))
    assert (told.background, told.ignored) == (255, ())
    separate = [mask(s0=1), mask(s1=255)]
    assert decide(*separate, reading=Reading(ignore=[255])).reading.merge == []
    numbered = [objects(seed=seed, count=5 + seed) for seed in range(4)]
    decision = decide(*numbered, reading=Reading(objects=True, ignore=[3]))
    assert (decision.codes, decision.ignored) == ({"0": 0, "3": 2, "*": 1}, (2,))
    coloured = decide(in_colours(mask(s0=1, s1=2), {0: 0, 1: 0xC80000, 2: 0x0000C8}), reading=Reading(objects=True))
    assert coloured.codes == {"#000000": 0, "*": 1}


@pytest.mark.parametrize(
    ("reading", "reason"),
    [
        (Reading(background=7), "7, which no mask holds"),
        (Reading(background="#000000"), "#000000, which no mask holds"),
        (Reading(ignore=[0, 1, 2]), "All values of the masks are ignored"),
        (Reading(merge=[[1, 9]]), "9, which no mask holds"),
    ],
)
def test_a_reading_that_does_not_fit_the_masks_is_refused(reading: Reading, reason: str) -> None:
    with pytest.raises(DatasetRefusedError, match=reason):
        decide(mask(s0=1, s1=2), reading=reading)


def test_classes_that_lie_where_they_always_lie_are_no_objects() -> None:
    """Segments of a ring, of another size in each mask."""
    masks = []
    for radius in (20, 24, 28, 31):
        rows, columns = np.mgrid[-32:32, -32:32]
        distance, angle = np.hypot(rows, columns), np.arctan2(rows, columns)
        ring = (distance > radius - 8) & (distance < radius)
        values = np.where(ring, 1 + ((angle + np.pi) / (2 * np.pi) * 5.999).astype(int), 0)
        masks.append(Mask(values, "values", None, False, None, None))
    assert decide(*masks).is_plain


def test_numbers_that_go_row_by_row_are_objects() -> None:
    """As programs number cells: from top to bottom, so that their rows tell them apart and their columns do not."""
    masks = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        values = np.zeros((64, 64), np.int32)
        for number in range(12):
            row, column = 1 + 5 * number, int(rng.integers(1, 55))
            values[row : row + 4, column : column + int(rng.integers(3, 8))] = number + 1
        masks.append(Mask(values, "values", None, False, None, None))
    assert decide(*masks).reading.objects


def test_one_mask_of_objects_among_classes_is_left_out() -> None:
    check = DatasetCheck(ClassTable(decision=decide(mask(s0=1, s1=2), mask(s0=1, s1=2))))
    many = np.kron(np.arange(1, 101).reshape(10, 10), np.ones((4, 4), np.int32))
    pair = ReadPair.of(image_like(many), Mask(many, "values", None, False, None, None), "i.png", "m.png")
    with pytest.raises(ImageError, match="different values"):
        check.add(pair)


def test_a_mask_without_a_labelled_pixel_is_left_out() -> None:
    decision = decide(mask(s0=1, s1=2, s2=255), mask(s0=1, s1=2))
    found = mask(background=255)
    pair = ReadPair.of(image_like(found.values), found, "i.png", "m.png")
    with pytest.raises(ImageError, match="ignored"):
        DatasetCheck(ClassTable(decision=decision)).add(pair)


def image_like(values: Array) -> Image:
    pixels = np.arange(values.size, dtype=np.int32).reshape(1, *values.shape)
    return Image(pixels, None, None, "raster", None, None, Grid(values.shape))


def test_a_value_that_is_new_in_a_later_version_is_said() -> None:
    table = ClassTable(
        [{"value": value, "name": f"{value}", "color": "#000000"} for value in (0, 1)], settled(Reading(), 0, (), {})
    )
    check = DatasetCheck(table)
    cases = []
    for number, found in enumerate((mask(s0=1), mask(s0=1, s1=255), mask(s0=-1))):
        pair = ReadPair.of(image_like(found.values + number), found, f"i{number}.png", f"m{number}.png")
        check.add(pair)
        case = Case(number, f"c{number}", Path("i.png"), Path("m.png"))
        cases.append(ReadCase(case, case.name, "i.png", "", found.values.shape, pair.signature, str(number)))
    dataset = check.finish(cases)
    assert [issue.code for issue in check.issues].count("new_value") == 2
    # The background stays what it was, although -1 is lower.
    assert [row["value"] for row in dataset.classes] == [0, -1, 1, 255]


def test_references_may_be_in_label_values_or_as_the_masks_were() -> None:
    codes: Codes = {"#000000": 0, "#ff0000": 1, "#00ff00": 2}
    numbers = mask(s0=1, s1=2)
    assert np.array_equal(reference_values(numbers, codes, [0, 1, 2]), numbers.values)
    colours = in_colours(numbers, {0: 0, 1: 0xFF0000, 2: 0x00FF00})
    assert np.array_equal(reference_values(colours, codes, [0, 1, 2]), numbers.values)
