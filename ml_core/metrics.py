"""Numbers that a reviewer would trust: per class and per case, on full images.

Rule for empty masks: where reference and prediction are both empty, every number of that class in that case is NaN
(undefined) and counted as such; where one is empty, Dice, IoU and NSD are 0 and HD95 is the image's diagonal: a miss,
which means never leave out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

NAMES = ("dice", "iou", "precision", "recall", "hd95", "nsd")
TOLERANCE = 2.0  # mm where the spacing is known, else pixels


def class_metrics(
    reference: NDArray[Any], prediction: NDArray[Any], spacing: tuple[float, ...] | None = None
) -> dict[str, float]:
    """All numbers of one class. Both masks boolean, same shape; spacing in mm in array order, None for pixels."""
    tp = int(np.count_nonzero(reference & prediction))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(reference)) - tp
    hd95, nsd = surface_metrics(reference, prediction, spacing)
    return {**overlap_metrics(tp, fp, fn), "hd95": hd95, "nsd": nsd}


def overlap_metrics(tp: int, fp: int, fn: int) -> dict[str, float]:
    """Dice, IoU, precision and recall from counted pixels; NaN where nothing was there and nothing was found."""
    if tp + fp + fn == 0:
        return dict.fromkeys(("dice", "iou", "precision", "recall"), float("nan"))
    return {
        "dice": 2 * tp / (2 * tp + fp + fn),
        "iou": tp / (tp + fp + fn),
        "precision": tp / (tp + fp) if tp + fp else 0.0,
        "recall": tp / (tp + fn) if tp + fn else 0.0,
    }


def surface_metrics(
    reference: NDArray[Any], prediction: NDArray[Any], spacing: tuple[float, ...] | None
) -> tuple[float, float]:
    """(HD95, NSD at TOLERANCE). HD95: the larger of the two directed 95th percentiles of the distances between surfaces.

    NSD: share of both surfaces that lies within the tolerance of the other (Nikolov 2018, on surface pixels).
    """
    steps = spacing or (1.0,) * reference.ndim
    has_reference, has_prediction = bool(reference.any()), bool(prediction.any())
    if not has_reference and not has_prediction:
        return float("nan"), float("nan")
    if not (has_reference and has_prediction):
        diagonal = float(np.linalg.norm(np.array(reference.shape) * np.array(steps)))
        return diagonal, 0.0
    box = _bounding_box(reference | prediction)
    surface_a, surface_b = _surface(reference[box]), _surface(prediction[box])
    to_a = ndimage.distance_transform_edt(~surface_a, sampling=steps)
    to_b = ndimage.distance_transform_edt(~surface_b, sampling=steps)
    a_to_b, b_to_a = to_b[surface_a], to_a[surface_b]
    hd95 = float(max(np.percentile(a_to_b, 95), np.percentile(b_to_a, 95)))
    near = np.count_nonzero(a_to_b <= TOLERANCE) + np.count_nonzero(b_to_a <= TOLERANCE)
    return hd95, near / (len(a_to_b) + len(b_to_a))


def _surface(mask: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels of the mask with a neighbour (by an edge or face) outside of it; the image's border is outside."""
    inner: NDArray[np.bool_] = ndimage.binary_erosion(mask, border_value=0)
    return mask & ~inner


def _bounding_box(mask: NDArray[Any]) -> tuple[slice, ...]:
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(0, part.start - 1), part.stop + 1) for part in found)


def case_metrics(
    reference: NDArray[Any], prediction: NDArray[Any], classes: int, spacing: tuple[float, ...] | None
) -> list[dict[str, float]]:
    """An entry per class, background first. Both label maps hold class positions on the image's own grid."""
    return [class_metrics(reference == index, prediction == index, spacing) for index in range(classes)]


def summarise(cases: list[list[dict[str, float]]], *, seed: int = 0) -> dict[str, Any]:
    """Means over cases, per class and over the foreground classes, with bootstrap 95 % intervals over cases.

    The headline of a case is the mean over the foreground classes (all but the first) that are defined in it. Undefined
    numbers and misses are counted beside every mean.
    """
    table = np.array([[[entry[name] for name in NAMES] for entry in case] for case in cases])  # cases, classes, names
    headline = _mean(table[:, 1:], axis=1)
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(cases), size=(1000, len(cases)))
    ci95, means = {}, _mean(headline, axis=0)
    for position, name in enumerate(NAMES):
        resampled = _mean(headline[:, position][draws], axis=1)
        resampled = resampled[np.isfinite(resampled)]
        ci95[name] = (
            [float(item) for item in np.percentile(resampled, [2.5, 97.5])] if len(resampled) else [float("nan")] * 2
        )
    per_class = []
    for index in range(table.shape[1]):
        rows = table[:, index]
        undefined = int(np.isnan(rows[:, 0]).sum())
        numbers = dict(zip(NAMES, (float(item) for item in _mean(rows, axis=0)), strict=True))
        misses = int((rows[:, 0] == 0).sum())
        per_class.append({**numbers, "n_cases": len(cases) - undefined, "undefined": undefined, "misses": misses})
    return {
        **dict(zip(NAMES, (float(item) for item in means), strict=True)),
        "ci95": ci95,
        "n_cases": len(cases),
        "misses": sum(item["misses"] for item in per_class[1:]),
        "undefined": sum(item["undefined"] for item in per_class[1:]),
        "per_class": per_class,
        "per_case": [dict(zip(NAMES, (float(item) for item in row), strict=True)) for row in headline],
    }


def _mean(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """The mean of what is defined; NaN where nothing is."""
    defined = ~np.isnan(values)
    counted = defined.sum(axis=axis)
    total = np.where(defined, values, 0).sum(axis=axis)
    mean: NDArray[Any] = np.where(counted > 0, total / np.maximum(counted, 1), np.nan)
    return mean
