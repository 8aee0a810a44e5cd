"""Numbers counted by hand, MONAI's beside ours, and means that leave no miss out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.metrics_check import Check, checks, monai_metrics
from ml_core.measures import metrics
from ml_core.measures.metrics import NAMES, case_metrics, class_metrics, summarise, volume_unit
from ml_core.measures.results import Scores

SQUARE = np.zeros((12, 12), np.uint8)
SQUARE[2:6, 2:6] = 1
NOTHING = np.zeros_like(SQUARE)
MOVED = np.roll(SQUARE, 2, axis=1)
ELSEWHERE = np.roll(SQUARE, 6, axis=0)


def cases(*pairs: tuple[np.ndarray, np.ndarray]) -> list[list[Scores]]:
    return [case_metrics(reference, predicted, 2, None) for reference, predicted in pairs]


@pytest.fixture(params=[0, 10**9], ids=["tree", "distance transform"])
def _both_searches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_PIXELS_PER_QUERY", request.param)


@pytest.mark.usefixtures("_both_searches")
@pytest.mark.parametrize("check", checks(), ids=lambda check: check.name)
def test_the_table_of_benchmarks_metrics_check(check: Check) -> None:
    ours = class_metrics(check.reference, check.prediction, check.spacing)
    for name, value in check.by_hand.items():
        assert getattr(ours, name) == pytest.approx(value, nan_ok=True), name
    one_is_empty = check.reference.any() != check.prediction.any()
    for name, value in monai_metrics(check).items():
        if one_is_empty and math.isnan(value):
            assert getattr(ours, name) == check.by_hand[name]  # where MONAI's means look away
        else:
            assert getattr(ours, name) == pytest.approx(value, abs=1e-5, nan_ok=True), name


@pytest.mark.usefixtures("_both_searches")
@pytest.mark.parametrize("seed", range(4))
def test_random_masks_agree_with_monai(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, spacing = ((20, 30), (0.4, 1.7)) if seed % 2 else ((9, 14, 12), (2.5, 0.9, 0.9))
    reference, predicted = (rng.random(shape) < share for share in (0.3, 0.1))
    ours = class_metrics(reference, predicted, spacing)
    for name, value in monai_metrics(Check("random", reference, predicted, spacing, {})).items():
        assert getattr(ours, name) == pytest.approx(value, abs=1e-5), name


def test_steps_that_add_up_to_the_tolerance_lie_within_it() -> None:
    """0.1 mm ten times is not 1 mm in floating point, so that 2 mm could become a little more."""
    reference, predicted = np.zeros((1, 80), bool), np.zeros((1, 80), bool)
    for start in range(20):
        reference[:], predicted[:] = False, False
        reference[0, start], predicted[0, start + 20] = True, True
        assert class_metrics(reference, predicted, (1, 0.1)).nsd == 1


def test_volume_error_is_in_cubic_millimetres_and_keeps_its_sign() -> None:
    reference, predicted = np.zeros((4, 5, 6), bool), np.zeros((4, 5, 6), bool)
    reference[1:3, 1:3, 1:3], predicted[1:3, 1:3, 1:2] = True, True
    found = class_metrics(reference, predicted, (2, 0.5, 0.5))
    assert found.volume_error == pytest.approx(-4 * 0.5)
    assert found.volume_error_relative == -0.5
    assert class_metrics(predicted, reference).volume_error == 4
    assert [volume_unit(*given) for given in ((3, "mm"), (2, "mm"), (3, "px"), (2, "px"))] == [
        "mm³",
        "mm²",
        "voxels",
        "px",
    ]


def test_both_empty_is_undefined_in_every_number() -> None:
    found = class_metrics(NOTHING > 0, NOTHING > 0)
    assert all(math.isnan(getattr(found, name)) for name in NAMES)


def test_means_keep_misses_and_count_what_is_undefined() -> None:
    found = summarise(cases((SQUARE, SQUARE), (SQUARE, NOTHING), (NOTHING, NOTHING)))
    assert found.dice == pytest.approx(0.5)  # of the two cases in which it is defined
    assert found.hd95 == pytest.approx(math.hypot(12, 12) / 2)
    assert (found.n_cases, found.n_defined, found.misses, found.undefined) == (3, 2, 1, 1)
    low, high = found.ci95["dice"]
    assert 0 <= low <= 0.5 <= high <= 1
    assert math.isnan(found.per_case[2].dice)


def test_every_dice_of_zero_is_a_miss_and_said_to_be_which() -> None:
    found = summarise(cases((SQUARE, NOTHING), (SQUARE, ELSEWHERE), (NOTHING, SQUARE), (SQUARE, MOVED)))
    row = found.per_class[1]
    assert (row.misses, row.not_found, row.misplaced, row.false_alarms) == (3, 1, 1, 1)
    assert found.misses == 3
    assert row.dice == pytest.approx(0.5 / 4)


def test_volume_errors_of_both_signs_do_not_cancel_in_a_mean() -> None:
    found = summarise(cases((SQUARE, NOTHING), (NOTHING, SQUARE)))
    assert found.volume_error == 16
    assert found.per_class[1].volume_error_relative == 1


def test_intervals_draw_patients_and_not_their_slices() -> None:
    """Twenty slices of two patients, one easy and one hard: as single cases they would look like twenty witnesses."""
    rows = cases(*[(SQUARE, SQUARE)] * 10, *[(SQUARE, NOTHING)] * 10)
    alone, grouped = summarise(rows), summarise(rows, groups=["a"] * 10 + ["b"] * 10)
    assert alone.dice == grouped.dice == 0.5
    assert (alone.n_units, grouped.n_units) == (20, 2)
    assert grouped.ci95["dice"] == (0, 1)
    assert 0.2 < alone.ci95["dice"][0] < alone.ci95["dice"][1] < 0.8
    assert grouped.per_class[1].ci95["dice"] == (0, 1)
    assert summarise(rows, seed=1) == summarise(rows, seed=1)


def test_one_case_or_one_patient_has_no_interval() -> None:
    rows = cases((SQUARE, MOVED), (SQUARE, SQUARE))
    for found in (summarise(rows[:1]), summarise(rows, groups=["a", "a"])):
        assert found.dice > 0
        assert all(math.isnan(bound) for bound in found.ci95["dice"])
