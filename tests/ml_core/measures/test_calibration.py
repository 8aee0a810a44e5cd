"""Calibration errors counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ml_core.measures import calibration
from ml_core.measures.calibration import Calibration


def two_classes(foreground: np.ndarray) -> np.ndarray:
    return np.stack([1 - foreground, foreground]).astype(np.float32)


def test_ece_counted_by_hand() -> None:
    """Eight pixels said to be foreground at 0.9, six of them right; two background at 0.7, both right."""
    foreground = np.array([[0.9] * 8 + [0.3] * 2])
    reference = np.array([[1] * 6 + [0] * 2 + [0] * 2], np.uint8)
    gathered = Calibration()
    gathered.add(two_classes(foreground), reference)
    found = gathered.result()
    assert found.ece == pytest.approx((8 * abs(6 / 8 - 0.9) + 2 * abs(1 - 0.7)) / 10, abs=1e-6)
    assert found.ece_foreground == pytest.approx(abs(6 / 8 - 0.9), abs=1e-6)
    bins = {index: entry for index, entry in enumerate(found.bins) if entry.count}
    assert {index: entry.count for index, entry in bins.items()} == {10: 2, 13: 8}
    assert bins[13].accuracy == 0.75
    assert bins[13].low < bins[13].confidence <= bins[13].high
    assert sum(entry.count for entry in found.bins_foreground) == 8


def test_probabilities_that_keep_their_word_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    foreground = rng.random((4, 300, 300))
    reference = (rng.random(foreground.shape) < foreground).astype(np.uint8)
    honest, boastful = Calibration(), Calibration()
    honest.add(two_classes(foreground), reference)
    boastful.add(two_classes(foreground > 0.5), reference)
    assert honest.result().ece < 0.01
    assert boastful.result().ece == pytest.approx(0.25, abs=0.01)


def test_cases_add_up_and_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(3), (10, 6, 5)).transpose(3, 0, 1, 2).astype(np.float16)
    reference = rng.integers(0, 3, (10, 6, 5))
    whole, halves = Calibration(), Calibration()
    whole.add(probabilities, reference)
    monkeypatch.setattr(calibration, "CHUNK_PIXELS", 70)
    for part in (slice(0, 4), slice(4, 10)):
        halves.add(probabilities[:, part], reference[part])
    for key in ("ece", "ece_foreground"):
        assert getattr(whole.result(), key) == pytest.approx(getattr(halves.result(), key), rel=1e-9)


def test_nothing_seen_is_undefined() -> None:
    gathered = Calibration()
    assert math.isnan(gathered.result().ece)
    gathered.add(two_classes(np.zeros((3, 3))), np.zeros((3, 3), np.uint8))
    assert gathered.result().ece == 0
    assert math.isnan(gathered.result().ece_foreground)


def test_a_reference_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Calibration().add(two_classes(np.zeros((3, 3))), np.zeros((3, 4), np.uint8))
