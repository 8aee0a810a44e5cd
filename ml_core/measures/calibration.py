"""Measure the calibration of a network: how well its probabilities agree with how often it is right."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_core.measures.metrics import IGNORED
from ml_core.measures.results import CalibrationBin, Reliability

BINS = 15
# Pixels that are processed together. This bounds the memory for volumes of any size.
CHUNK_PIXELS = 2**19


class Calibration:
    """Gathers the expected calibration error (ECE) and its bins case by case (Guo et al. 2017, arXiv:1706.04599).

    The probability of a pixel's winning class puts the pixel into one of BINS bins of equal width; the first is (0,
    1/15]. The ECE is the mean over pixels of |accuracy - mean confidence| of their bin. It is computed over all pixels
    and over the foreground alone (pixels whose reference or prediction is not the background, index 0), because
    background is the larger and easier part of a medical image and makes nearly any network look calibrated. All pixels
    of all cases weigh the same.
    """

    def __init__(self) -> None:
        # Axes: all pixels or foreground; sums of confidence, of correct pixels and of pixels; bin.
        self._sums = np.zeros((2, 3, BINS))

    def add(self, probabilities: NDArray[Any], reference: NDArray[Any]) -> None:
        """Add one case: probabilities (K, *spatial) of any float type that sum to 1 over K, class positions (*spatial).

        Raises ValueError if the shapes do not fit.
        """
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
        """Return the calibration so far. Numbers of a bin without pixels are NaN, as is the ECE without any pixel."""
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
    """Yield slices along the first spatial axis, each of CHUNK_PIXELS pixels at most (but of one row at least)."""
    rows = max(1, CHUNK_PIXELS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield slice(start, start + rows)
