"""Cleaning of label maps, and that it is chosen only where it helps."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from ml_core.errors import ConfigError
from ml_core.prediction.postprocessing import MARGIN, Cleaning, Postprocessing, apply, choose

LARGEST, HOLES = Cleaning(largest_component=True), Cleaning(fill_holes=True)


def drawn(*boxes: tuple[int, int, int, int, int], side: int = 40) -> np.ndarray:
    """Boxes of (value, top, left, height, width) on background, later ones on top."""
    labels = np.zeros((side, side), np.uint8)
    for value, top, left, height, width in boxes:
        labels[top : top + height, left : left + width] = value
    return labels


def test_largest_component_and_minimum_size() -> None:
    labels = drawn((1, 2, 2, 10, 10), (1, 20, 20, 5, 5), (1, 30, 30, 2, 2), (2, 35, 2, 2, 2))
    assert np.array_equal(apply(labels, Postprocessing({1: LARGEST})), drawn((1, 2, 2, 10, 10), (2, 35, 2, 2, 2)))
    cleaned = apply(labels, Postprocessing({1: Cleaning(minimum_size=5), 2: Cleaning(minimum_size=5)}))
    assert np.array_equal(cleaned, drawn((1, 2, 2, 10, 10), (1, 20, 20, 5, 5)))
    exact = apply(labels, Postprocessing({1: Cleaning(minimum_size=25)}))
    assert (exact == 1).sum() == 125, "a component of just the minimum size stays"


def test_corners_connect() -> None:
    labels = drawn((1, 2, 2, 3, 3), (1, 5, 5, 2, 2))
    assert np.array_equal(apply(labels, Postprocessing({1: LARGEST})), labels)


def test_holes_are_filled_but_other_classes_inside_stay() -> None:
    ring = drawn((1, 5, 5, 20, 20), (0, 8, 8, 14, 14), (2, 10, 10, 5, 5))
    filled = apply(ring, Postprocessing({1: HOLES}))
    assert np.array_equal(filled, drawn((1, 5, 5, 20, 20), (2, 10, 10, 5, 5)))
    open_ring = ring.copy()
    open_ring[5:8, 12] = 0
    assert np.array_equal(apply(open_ring, Postprocessing({1: HOLES})), open_ring)
    at_border = drawn((1, 0, 5, 10, 10), (0, 0, 8, 6, 4))  # open at the image's border: no hole
    assert np.array_equal(apply(at_border, Postprocessing({1: HOLES})), at_border)


@pytest.mark.parametrize("shape", [(40, 50), (12, 15, 14)])
def test_holes_are_those_of_scipy(shape: tuple[int, ...]) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.7
    filled = apply(mask.astype(np.uint8), Postprocessing({1: HOLES}))
    assert filled.sum() > mask.sum()
    np.testing.assert_array_equal(filled > 0, ndimage.binary_fill_holes(mask))


def test_the_input_is_not_written_into_and_comes_back_where_nothing_is_to_do() -> None:
    labels = drawn((1, 2, 2, 10, 10), (1, 20, 20, 5, 5))
    before = labels.copy()
    assert apply(labels, Postprocessing({1: Cleaning()})) is labels
    apply(labels, Postprocessing({1: LARGEST, 3: LARGEST}))
    np.testing.assert_array_equal(labels, before)
    everything_goes = apply(labels, Postprocessing({1: Cleaning(minimum_size=1000, fill_holes=True)}))
    assert not everything_goes.any()


def test_it_survives_json() -> None:
    how = Postprocessing({1: LARGEST, 2: Cleaning(minimum_size=64, fill_holes=True)})
    assert how.is_active
    assert not Postprocessing({1: Cleaning()}).is_active
    assert Postprocessing.from_dict(json.loads(json.dumps(how.to_dict()))) == how
    broken: list[dict[str, Any]] = [{"1": {"colour": 3}}, {"x": {}}, {"1": 3}]
    for damaged in broken:
        with pytest.raises(ConfigError, match="cannot be read"):
            Postprocessing.from_dict(damaged)


def test_a_speck_in_most_predictions_makes_it_choose_the_largest_component() -> None:
    truth = drawn((1, 2, 2, 12, 12))
    cases = [(drawn((1, 2, 2, 12, 12), (1, 25, 25, 6, side)), truth) for side in (5, 6, 0)]
    how, report = choose(iter(cases), 2)
    assert how == Postprocessing({1: LARGEST})
    row = report.classes[0]
    used = {entry.name: entry for entry in row.candidates if entry.used}
    assert set(used) == {"largest component"}
    after = [apply(predicted, how) for predicted, _ in cases]
    assert used["largest component"].dice == 1
    assert all(np.array_equal(found, truth) for found in after)
    assert row.dice == pytest.approx(np.mean([2 * 144 / (288 + extra) for extra in (30, 36, 0)]))
    assert report.cases == 3


def test_where_small_things_are_real_nothing_is_removed() -> None:
    truth = drawn((1, 2, 2, 12, 12), (1, 30, 30, 3, 3))
    how, report = choose([(truth, truth)] * 3, 2)
    assert not how.is_active
    assert not any(entry.used for entry in report.classes[0].candidates)


def test_a_gain_in_the_mean_does_not_pay_for_a_miss() -> None:
    """One case has a real thing of 9 pixels and nothing else; removing specks helps the nine others."""
    noisy = (drawn((1, 2, 2, 12, 12), (1, 30, 30, 3, 3)), drawn((1, 2, 2, 12, 12)))
    tiny = (drawn((1, 30, 30, 3, 3)), drawn((1, 20, 29, 14, 4)))
    how, report = choose([noisy] * 9 + [tiny], 2)
    size16 = next(e for e in report.classes[0].candidates if e.name == "minimum size 16")
    assert size16.misses == 1
    assert how == Postprocessing({1: LARGEST})


def test_less_than_the_margin_is_not_worth_a_step() -> None:
    truth = drawn((1, 0, 0, 60, 60), side=100)
    speck = drawn((1, 0, 0, 60, 60), (1, 80, 80, 1, 3), side=100)
    how, report = choose([(speck, truth)] * 3, 2)
    best = max(entry.dice for entry in report.classes[0].candidates)
    assert 0 < best - report.classes[0].dice < MARGIN
    assert not how.is_active


def test_false_alarms_alone_choose_nothing_but_beside_real_cases_they_go() -> None:
    """A class that no reference has tells nothing about what cleaning would cost."""
    alarm, nothing = drawn((1, 3, 3, 2, 2)), drawn()
    how, report = choose([(alarm, nothing)] * 3, 2)
    assert not how.is_active
    assert math.isnan(next(e for e in report.classes[0].candidates if e.name == "minimum size 16").dice)
    real = drawn((1, 10, 10, 12, 12))
    how, _ = choose([(alarm, nothing)] * 2 + [(real, real)], 2)
    assert how == Postprocessing({1: Cleaning(minimum_size=16)})


def test_holes_come_on_top_of_the_chosen_removal_and_each_class_has_its_own() -> None:
    truth = drawn((1, 2, 2, 14, 14), (2, 25, 25, 10, 10))
    predicted = drawn((1, 2, 2, 14, 14), (0, 5, 5, 6, 6), (1, 30, 2, 5, 5), (2, 25, 25, 10, 10))
    how, _ = choose([(predicted, truth)] * 3, 3)
    assert how == Postprocessing({1: Cleaning(largest_component=True, fill_holes=True)})
    np.testing.assert_array_equal(apply(predicted, how), truth)


def test_two_cases_are_too_few_and_one_that_gains_does_not_pay_for_two_that_lose() -> None:
    truth = drawn((1, 2, 2, 12, 12))
    speck = drawn((1, 2, 2, 12, 12), (1, 25, 25, 6, 5))
    assert not choose([(speck, truth)] * 2, 2)[0].is_active
    # One case with a large false part gains more than two with a hole that is real lose by having it filled.
    ring, dot = drawn((1, 2, 2, 14, 14), (0, 8, 8, 2, 2)), drawn((1, 2, 2, 14, 14), (0, 3, 3, 12, 12))
    whole = drawn((1, 2, 2, 14, 14))
    how, report = choose([(ring, ring)] * 2 + [(dot, whole)], 2)
    filled = next(entry for entry in report.classes[0].candidates if entry.name == "fill holes")
    assert filled.dice - filled.dice_before > MARGIN
    assert not how.is_active


def test_where_references_have_several_parts_the_largest_is_not_kept_alone() -> None:
    two = drawn((1, 2, 2, 12, 12), (1, 30, 30, 4, 4))
    speck = drawn((1, 2, 2, 12, 12), (1, 25, 5, 6, 5))
    how, _ = choose([(speck, drawn((1, 2, 2, 12, 12)))] * 4 + [(two, two)], 2)
    assert not any(cleaning.largest_component for cleaning in how.classes.values())
    alone, _ = choose([(speck, drawn((1, 2, 2, 12, 12)))] * 4, 2)
    assert alone == Postprocessing({1: LARGEST})
