"""Numbers counted by hand, and MONAI's beside ours."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice

from ml_core.metrics import case_metrics, class_metrics, summarise


def square(top: int, left: int, side: int, shape: tuple[int, int] = (12, 12)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_overlap_counted_by_hand() -> None:
    found = class_metrics(square(2, 2, 4), square(2, 4, 4))  # 16 and 16 pixels, 8 in common
    assert found["dice"] == pytest.approx(0.5)
    assert found["iou"] == pytest.approx(8 / 24)
    assert found["precision"] == found["recall"] == pytest.approx(0.5)
    assert found["hd95"] == pytest.approx(2.0)
    assert found["nsd"] == pytest.approx(1.0)  # every border pixel lies within two pixels of the other border


def test_spacing_turns_pixels_into_millimetres() -> None:
    near = class_metrics(square(2, 2, 4), square(2, 4, 4), (1.0, 3.0))
    assert near["hd95"] == pytest.approx(6.0)
    assert near["nsd"] < 1.0


def test_both_empty_is_undefined() -> None:
    nothing = np.zeros((5, 5), bool)
    assert all(math.isnan(value) for value in class_metrics(nothing, nothing).values())


@pytest.mark.parametrize("missed", [True, False])
def test_one_empty_is_a_miss_with_the_diagonal_as_distance(missed: bool) -> None:
    nothing, something = np.zeros((3, 4), bool), square(0, 0, 2, (3, 4))
    found = class_metrics(*((something, nothing) if missed else (nothing, something)))
    assert (found["dice"], found["iou"], found["nsd"]) == (0, 0, 0)
    assert found["hd95"] == pytest.approx(5.0)
    assert found["recall"] == 0
    assert found["precision"] == 0


def test_means_keep_misses_and_count_what_is_undefined() -> None:
    truth = square(2, 2, 4).astype(int)
    perfect, missed, absent = (truth, truth), (truth, truth * 0), (truth * 0, truth * 0)
    cases = [case_metrics(reference, predicted, 2, None) for reference, predicted in (perfect, missed, absent)]
    found = summarise(cases)
    assert found["dice"] == pytest.approx(0.5)  # of the two cases in which it is defined
    assert (found["n_cases"], found["misses"], found["undefined"]) == (3, 1, 1)
    low, high = found["ci95"]["dice"]
    assert 0 <= low <= 0.5 <= high <= 1
    assert math.isnan(found["per_case"][2]["dice"])


@pytest.mark.parametrize("seed", range(5))
def test_dice_and_hd95_agree_with_monai(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference, predicted = (square(int(rng.integers(6)), int(rng.integers(6)), 5) for _ in range(2))
    ours = class_metrics(reference, predicted)
    a, b = (torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (predicted, reference))
    assert ours["dice"] == pytest.approx(float(compute_dice(a, b)))
    theirs = compute_hausdorff_distance(a, b, include_background=True, percentile=95)
    assert ours["hd95"] == pytest.approx(float(theirs), abs=1e-5)
