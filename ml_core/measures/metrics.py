"""Compute segmentation metrics per class and per case, on full images.

These rules hold for one class in one case when a mask is empty:

- If neither reference nor prediction has the class, every metric is NaN. The case is counted as `undefined` and enters
  no mean.
- If exactly one of them has it, Dice, IoU, precision, recall and NSD are 0, and HD95 is the image's diagonal.
- If both have it but share no pixel, the overlaps are 0, and HD95 and NSD are computed as usual.

A defined case whose Dice is 0 is a miss. Every miss enters the means, and `misses` counts them, so that a total failure
cannot hide in a mean. Three counts divide the misses by kind: `not_found` (class in the reference only), `misplaced`
(in both, without a common pixel) and `false_alarms` (in the prediction only).

The volume error is the predicted minus the reference volume, in mm³ (mm² for a 2D image) if the spacing is known,
otherwise in voxels (pixels); `volume_unit` names the unit. The relative volume error divides by the larger of the two
volumes, so that a class that was not found gives -1 and a false alarm +1, and both enter the mean. The usual division
by the reference has no value for a false alarm. Summaries take means of absolute volume errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from ml_core.measures.results import Means, Scores, Summary

IGNORED = 255
"""Class position of pixels that nobody labelled: they are neither learnt from nor scored."""

OVERLAPS = ("dice", "iou", "precision", "recall")
SIGNED = ("volume_error", "volume_error_relative")
NAMES = tuple(item.name for item in fields(Scores))
# The distance within which NSD counts two surfaces as equal: in mm if the spacing is known, otherwise in pixels.
TOLERANCE = 2.0
# Bootstrap samples of a confidence interval.
RESAMPLES = 1000
# Distances are compared with this slack, because steps such as 0.7 mm do not add up exactly in floating point.
_ROUNDING = 1e-9
# One search in a k-d tree takes at most about as long as this many pixels of a distance transform.
_PIXELS_PER_QUERY = 100


def class_metrics(
    reference: NDArray[Any], prediction: NDArray[Any], spacing: tuple[float, ...] | None = None
) -> Scores:
    """Compute all metrics of one class in one case, from boolean masks of the same shape.

    `spacing` is in mm in array order; without it distances are in pixels.
    """
    tp = int(np.count_nonzero(reference & prediction))
    n_reference, n_prediction = int(np.count_nonzero(reference)), int(np.count_nonzero(prediction))
    hd95, nsd = surface_metrics(reference, prediction, spacing)
    error, larger = n_prediction - n_reference, max(n_prediction, n_reference)
    return Scores(
        **overlap_metrics(tp, n_prediction - tp, n_reference - tp),
        hd95=hd95,
        nsd=nsd,
        volume_error=error * float(np.prod(spacing or (1.0,))) if larger else float("nan"),
        volume_error_relative=error / larger if larger else float("nan"),
    )


def volume_unit(dimensions: int, unit: str) -> str:
    """Return the unit of `volume_error` for 2 or 3 dimensions, given the unit of distances ("mm" or "px")."""
    if unit == "mm":
        return "mm³" if dimensions == 3 else "mm²"
    return "voxels" if dimensions == 3 else "px"


def overlap_metrics(tp: int, fp: int, fn: int) -> dict[str, float]:
    """Compute Dice, IoU, precision and recall from the counts of true positive, false positive and missed pixels.

    All are NaN if the three counts are 0.
    """
    if tp + fp + fn == 0:
        return dict.fromkeys(OVERLAPS, float("nan"))
    return {
        "dice": 2 * tp / (2 * tp + fp + fn),
        "iou": tp / (tp + fp + fn),
        "precision": tp / (tp + fp) if tp + fp else 0.0,
        "recall": tp / (tp + fn) if tp + fn else 0.0,
    }


def surface_metrics(
    reference: NDArray[Any], prediction: NDArray[Any], spacing: tuple[float, ...] | None
) -> tuple[float, float]:
    """Compute (HD95, NSD at TOLERANCE) of two boolean masks from the centres of their surface pixels.

    The module's docstring gives the rules for empty masks. `spacing` is in mm in array order, None for pixels.

    HD95 is the larger of the two directed 95th percentiles (linear interpolation), as in MONAI. Others report the
    percentile over both directions together, which is never larger. NSD is the share of both surfaces that lies within
    the tolerance of the other surface (Nikolov et al. 2018, arXiv:1809.04430). Surface pixels are counted, as in
    Seidlitz et al. 2022 (arXiv:2111.05408) and MONAI, and not weighted by their area.
    """
    steps = tuple(float(step) for step in spacing or (1.0,) * reference.ndim)
    has_reference, has_prediction = bool(reference.any()), bool(prediction.any())
    if not has_reference and not has_prediction:
        return float("nan"), float("nan")
    if not (has_reference and has_prediction):
        return float(np.linalg.norm(np.multiply(reference.shape, steps))), 0.0
    box = bounding_box(reference | prediction)
    surfaces = _surface(reference[box]), _surface(prediction[box])
    to_prediction, to_reference = _distances(*surfaces, steps), _distances(*surfaces[::-1], steps)
    hd95 = float(max(np.percentile(to_prediction, 95), np.percentile(to_reference, 95)))
    near = sum(int(np.count_nonzero(part <= TOLERANCE + _ROUNDING)) for part in (to_prediction, to_reference))
    return hd95, near / (len(to_prediction) + len(to_reference))


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the smallest box that holds every True pixel of a mask, one slice per axis. The mask must not be empty."""
    box: tuple[slice, ...] = ndimage.find_objects(mask.view(np.uint8))[0]
    return box


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the pixels of a mask that touch a pixel outside of it by an edge (2D) or face (3D).

    Everything beyond the array counts as outside.
    """
    inner = mask.copy()
    # This is a binary erosion by one pixel. SciPy's own takes seven times as long.
    for axis in range(mask.ndim):
        target, source = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        target[1:] &= source[:-1]
        target[:-1] &= source[1:]
        target[[0, -1]] = False
    return mask & ~inner


def _distances(surface: NDArray[np.bool_], other: NDArray[np.bool_], steps: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the distance from each pixel of a surface to the nearest pixel of the other, in no particular order.

    `steps` are the spacing per axis.
    """
    distances = np.zeros(int(np.count_nonzero(surface)))
    # The distance is 0 for pixels on both surfaces, so only the others are searched.
    apart = surface & ~other
    n_apart = int(np.count_nonzero(apart))
    if n_apart * _PIXELS_PER_QUERY < surface.size:
        tree = KDTree(np.argwhere(other) * steps, balanced_tree=False, compact_nodes=False)
        distances[:n_apart] = tree.query(np.argwhere(apart) * steps)[0]
    else:
        distances[:n_apart] = ndimage.distance_transform_edt(~other, sampling=steps)[apart]
    return distances


def without_ignored(reference: NDArray[Any], prediction: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both label maps with background where the reference is IGNORED; the same arrays where it is nowhere."""
    ignored = reference == IGNORED
    if not ignored.any():
        return reference, prediction
    return np.where(ignored, 0, reference), np.where(ignored, 0, prediction)


def case_metrics(
    reference: NDArray[Any], prediction: NDArray[Any], classes: int, spacing: tuple[float, ...] | None
) -> list[Scores]:
    """Compute the metrics of one case for each of `classes` classes, background first.

    Both label maps hold class positions (0 to classes - 1) on the image's own grid. Pixels that are IGNORED in the
    reference count as background in both. `spacing` is in mm in array order.
    """
    reference, prediction = without_ignored(reference, prediction)
    return [class_metrics(reference == index, prediction == index, spacing) for index in range(classes)]


def summarise(cases: list[list[Scores]], *, seed: int = 0, groups: Sequence[str] | None = None) -> Summary:
    """Average metrics over cases, per class and over the foreground classes, with 95 % confidence intervals.

    `cases` holds the result of `case_metrics` for each case. The headline metrics of a case are the means over its
    defined foreground classes (all but the first). Each mean comes with its interval `ci95`, the number of cases, the
    number of undefined cases, and the misses by kind.

    The intervals are percentile bootstrap intervals. `groups` has the patient of each case, or "" for a case on its
    own. The bootstrap draws whole patients (cluster bootstrap), because cases of one patient resemble each other; the
    means are still over cases. With fewer than two patients or single cases to draw, intervals are NaN.
    """
    # Axes: cases, classes, names of the metrics.
    table = np.array([[astuple(entry) for entry in case] for case in cases])
    counts = [_counts(table[:, index]) for index in range(table.shape[1])]
    signed = [NAMES.index(name) for name in SIGNED]
    table[..., signed] = np.abs(table[..., signed])
    headline = _mean(table[:, 1:], axis=1)
    # Axes: cases, the headline followed by the classes, names of the metrics.
    columns = np.concatenate([headline[:, None], table], axis=1)
    means = _mean(columns, axis=0)
    intervals, n_units = _intervals(columns, groups or [""] * len(cases), seed)
    total = {name: sum(row[name] for row in counts[1:]) for name in counts[0]} | {"n_cases": len(cases)}
    return Summary(
        **vars(_means(means[0], intervals[0], total)),
        n_defined=int(np.count_nonzero(~np.isnan(headline[:, 0]))),
        n_units=n_units,
        per_class=[_means(*row) for row in zip(means[1:], intervals[1:], counts, strict=True)],
        per_case=[_scores(row) for row in headline],
    )


def _means(means: NDArray[Any], intervals: NDArray[Any], counts: dict[str, int]) -> Means:
    """Make Means of values (names,) and their intervals (names, 2)."""
    ci95 = {name: (float(low), float(high)) for name, (low, high) in zip(NAMES, intervals, strict=True)}
    return Means(**vars(_scores(means)), **counts, ci95=ci95)


def _counts(rows: NDArray[Any]) -> dict[str, int]:
    """Count the cases in which one class was defined, undefined or missed. `rows` are its metrics, (cases, names)."""
    missed, relative = rows[:, NAMES.index("dice")] == 0, rows[:, NAMES.index("volume_error_relative")]
    undefined = int(np.isnan(rows[:, 0]).sum())
    return {
        "n_cases": len(rows) - undefined,
        "undefined": undefined,
        "misses": int(missed.sum()),
        "not_found": int((missed & (relative == -1)).sum()),
        "misplaced": int((missed & (np.abs(relative) < 1)).sum()),
        "false_alarms": int((missed & (relative == 1)).sum()),
    }


def _intervals(columns: NDArray[Any], groups: Sequence[str], seed: int) -> tuple[NDArray[Any], int]:
    """Return the bootstrap intervals (columns, names, 2) of the means, and the number of units that are drawn.

    A unit is a group, or a case without group. The bounds are the 2.5th and 97.5th percentile.
    """
    keys = [group or f"case {position}" for position, group in enumerate(groups)]
    unit_of_case = np.unique(keys, return_inverse=True)[1]
    n_units = int(unit_of_case.max()) + 1
    if n_units < 2:
        return np.full((*columns.shape[1:], 2), np.nan), n_units
    defined = ~np.isnan(columns)
    totals, counts = (np.zeros((n_units, *columns.shape[1:])) for _ in range(2))
    np.add.at(totals, unit_of_case, np.where(defined, columns, 0))
    np.add.at(counts, unit_of_case, defined)
    rng = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, *columns.shape[1:]))
    for draw in means:
        weights = np.bincount(rng.integers(n_units, size=n_units), minlength=n_units)
        total, count = (np.tensordot(weights, values, 1) for values in (totals, counts))
        draw[:] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    intervals = np.full((*columns.shape[1:], 2), np.nan)
    # A draw without any defined case has no mean. If no draw has one, the interval stays NaN.
    known = ~np.isnan(means).all(axis=0)
    intervals[known] = np.nanpercentile(means[:, known], [2.5, 97.5], axis=0).T
    return intervals, n_units


def _scores(values: NDArray[Any]) -> Scores:
    return Scores(**dict(zip(NAMES, values.tolist(), strict=True)))


def _mean(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """Average the values that are not NaN; the mean is NaN if all are. Unlike np.nanmean it warns of nothing."""
    defined = ~np.isnan(values)
    counted = defined.sum(axis=axis)
    total = np.where(defined, values, 0).sum(axis=axis)
    mean: NDArray[Any] = np.where(counted > 0, total / np.maximum(counted, 1), np.nan)
    return mean
