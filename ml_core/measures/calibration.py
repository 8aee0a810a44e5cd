"""How far a network's probabilities can be believed: calibration over the held-out cases."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_core.measures.metrics import IGNORED
from ml_core.measures.results import CalibrationBin, Reliability

BINS = 15
CHUNK_PIXELS = 2**19  # pixels looked at together, which bounds the memory however large a volume is


class Calibration:
    """Reliability of the top label, gathered case by case: the expected calibration error (ECE) of Guo et al. 2017.

    Every pixel falls by the probability of its winning class into one of BINS bins of equal width, (0, 1/15] the first. The
    ECE is the mean over pixels of |accuracy - mean confidence| of their bin: arXiv:1706.04599. Counted twice, over all pixels
    and over the foreground (reference or prediction is not background, index 0): background is most of a medical image and
    easy, so that alone it makes nearly any network look calibrated. Pixels of all cases weigh the same.
    """

    def __init__(self) -> None:
        self._sums = np.zeros((2, 3, BINS))  # all and foreground; confidence, correct and count

    def add(self, probabilities: NDArray[Any], reference: NDArray[Any]) -> None:
        """Probabilities (K, *spatial), any float type, summing to 1 over K; reference: class positions (*spatial)."""
        if probabilities.shape[1:] != reference.shape:
            raise ValueError(f"probabilities {probabilities.shape} do not fit a reference of {reference.shape}")
        for part in _chunks(reference.shape):
            chunk, truth = probabilities[:, part], reference[part]
            predicted = chunk.argmax(axis=0)
            confidence = chunk.max(axis=0).astype(np.float64)
            seen = truth != IGNORED
            foreground = seen & ((predicted > 0) | (truth > 0))
            self._count(0, confidence[seen], (predicted == truth)[seen])
            self._count(1, confidence[foreground], (predicted == truth)[foreground])

    def _count(self, region: int, confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> None:
        bins = np.clip(np.ceil(confidence.ravel() * BINS).astype(np.intp) - 1, 0, BINS - 1)
        for row, weights in enumerate((confidence.ravel(), correct.ravel(), None)):
            self._sums[region, row] += np.bincount(bins, weights, minlength=BINS)

    def result(self) -> Reliability:
        """NaN where no pixel was seen."""
        (bins, ece), (bins_foreground, ece_foreground) = map(_reliability, self._sums)
        return Reliability(ece, ece_foreground, bins, bins_foreground)


def _reliability(sums: NDArray[np.float64]) -> tuple[list[CalibrationBin], float]:
    confidence, correct, count = sums
    total = float(count.sum())
    ece = float(np.abs(correct - confidence).sum() / total) if total else math.nan
    with np.errstate(invalid="ignore"):
        means = zip(confidence / count, correct / count, count, strict=True)
    bins = [
        CalibrationBin(index / BINS, (index + 1) / BINS, float(sure), float(right), int(pixels))
        for index, (sure, right, pixels) in enumerate(means)
    ]
    return bins, ece


def _chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices along the first spatial axis."""
    rows = max(1, CHUNK_PIXELS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield slice(start, start + rows)
