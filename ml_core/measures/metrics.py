"""Numbers that a reviewer would trust: per class and per case, on full images.

Rule for empty masks, for one class in one case:

- Neither reference nor prediction has the class: every number is NaN. It is `undefined`: counted, and in no mean.
- Exactly one has it: Dice, IoU, precision, recall and NSD are 0, HD95 is the image's diagonal.
- Both have it but share no pixel: overlaps are 0; HD95 and NSD are measured as usual.

Every defined case whose Dice is 0 is a miss, so nothing that failed wholly hides in a mean. `misses` counts them, and three
parts say which kind: `not_found` (in the reference only), `misplaced` (in both, no pixel in common), `false_alarms` (in the
prediction only). Means never leave out a miss.

Volume error is predicted minus reference, in mm³ (a 2D image: mm²) where the spacing is known, else in voxels (pixels):
`volume_unit`. Its relative form divides by the larger of both sizes, so that a miss is -1, a false alarm +1, and both count
in a mean; the usual division by the reference has no value for a false alarm. Summaries take the mean of absolute values.
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
TOLERANCE = 2.0  # mm where the spacing is known, else pixels
RESAMPLES = 1000
_ROUNDING = 1e-9  # 0.7 mm steps do not add up to exactly 2 mm
_PIXELS_PER_QUERY = 100  # a search in a tree takes at most about as long as so many pixels of a distance transform


def class_metrics(
    reference: NDArray[Any], prediction: NDArray[Any], spacing: tuple[float, ...] | None = None
) -> Scores:
    """Of one class. Both masks boolean, same shape; spacing in mm in array order, None for pixels."""
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
    """The unit of `volume_error`, for `unit` "mm" or "px" (the unit of distances) and 2 or 3 dimensions."""
    if unit == "mm":
        return "mm³" if dimensions == 3 else "mm²"
    return "voxels" if dimensions == 3 else "px"


def overlap_metrics(tp: int, fp: int, fn: int) -> dict[str, float]:
    """Dice, IoU, precision and recall from counted pixels; NaN where nothing was there and nothing was found."""
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
    """(HD95, NSD at TOLERANCE) of boolean masks, from the centres of their surface pixels; module docstring for empty ones.

    HD95: the larger of the two directed 95th percentiles (linear interpolation), as MONAI takes it;
    the percentile of both directions thrown together, which others report, is never larger. NSD: the share of both surfaces
    that lies within the tolerance of the other (Nikolov et al. 2018, arXiv:1809.04430), counted in surface pixels as in
    Seidlitz et al. 2022 (arXiv:2111.05408) and MONAI, not weighted by the area that each stands for.
    """
    steps = tuple(float(step) for step in spacing or (1.0,) * reference.ndim)
    has_reference, has_prediction = bool(reference.any()), bool(prediction.any())
    if not has_reference and not has_prediction:
        return float("nan"), float("nan")
    if not (has_reference and has_prediction):
        return float(np.linalg.norm(np.multiply(reference.shape, steps))), 0.0
    box = bounding_box(reference | prediction)
    surfaces = _surface(reference[box]), _surface(prediction[box])
    one, other = _distances(*surfaces, steps), _distances(*surfaces[::-1], steps)
    hd95 = float(max(np.percentile(one, 95), np.percentile(other, 95)))
    near = sum(int(np.count_nonzero(distances <= TOLERANCE + _ROUNDING)) for distances in (one, other))
    return hd95, near / (len(one) + len(other))


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest slices that hold every True pixel of a mask that is not empty."""
    box: tuple[slice, ...] = ndimage.find_objects(mask.view(np.uint8))[0]
    return box


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of the mask with a neighbour (by an edge or face) outside of it; what lies beyond the array is outside."""
    inner = mask.copy()
    for axis in range(mask.ndim):  # a binary erosion by one pixel; SciPy's takes seven times as long
        target, source = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        target[1:] &= source[:-1]
        target[:-1] &= source[1:]
        target[[0, -1]] = False
    return mask & ~inner


def _distances(surface: NDArray[np.bool_], other: NDArray[np.bool_], steps: tuple[float, ...]) -> NDArray[np.float64]:
    """From every pixel of a surface to the nearest of the other one."""
    apart = surface & ~other  # where both coincide the distance is 0
    found = np.zeros(int(np.count_nonzero(surface)))
    n_apart = int(np.count_nonzero(apart))
    if n_apart * _PIXELS_PER_QUERY < surface.size:
        tree = KDTree(np.argwhere(other) * steps, balanced_tree=False, compact_nodes=False)
        found[:n_apart] = tree.query(np.argwhere(apart) * steps)[0]
    else:
        found[:n_apart] = ndimage.distance_transform_edt(~other, sampling=steps)[apart]
    return found


def without_ignored(reference: NDArray[Any], prediction: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both label maps with background where the reference is IGNORED; the same arrays where it is nowhere."""
    ignored = reference == IGNORED
    if not ignored.any():
        return reference, prediction
    return np.where(ignored, 0, reference), np.where(ignored, 0, prediction)


def case_metrics(
    reference: NDArray[Any], prediction: NDArray[Any], classes: int, spacing: tuple[float, ...] | None
) -> list[Scores]:
    """An entry per class, background first. Both label maps hold class positions on the image's own grid.

    Pixels that are IGNORED in the reference count as background in both.
    """
    reference, prediction = without_ignored(reference, prediction)
    return [class_metrics(reference == index, prediction == index, spacing) for index in range(classes)]


def summarise(cases: list[list[Scores]], *, seed: int = 0, groups: Sequence[str] | None = None) -> Summary:
    """Means over cases, per class and over the foreground classes, with bootstrap 95 % intervals.

    `cases`: what `case_metrics` gave for each. `groups`: the patient of each case, "" for a case on its own; whole patients
    are drawn then (cluster bootstrap), since cases of one patient resemble each other. Means stay means over cases.

    The headline of a case is the mean over the foreground classes (all but the first) that are defined in it. Beside every
    mean: `ci95` (percentile bootstrap, NaN where fewer than two patients or cases are there to draw), the number of cases,
    how many are undefined, and the misses by kind.
    """
    table = np.array([[astuple(entry) for entry in case] for case in cases])  # cases, classes, names
    counts = [_counts(table[:, index]) for index in range(table.shape[1])]
    signed = [NAMES.index(name) for name in SIGNED]
    table[..., signed] = np.abs(table[..., signed])
    headline = _mean(table[:, 1:], axis=1)
    columns = np.concatenate([headline[:, None], table], axis=1)  # cases, headline and classes, names
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
    """From (names,) and (names, 2)."""
    ci95 = {name: (float(low), float(high)) for name, (low, high) in zip(NAMES, intervals, strict=True)}
    return Means(**vars(_scores(means)), **counts, ci95=ci95)


def _counts(rows: NDArray[Any]) -> dict[str, int]:
    """How often one class was undefined or missed, from (cases, NAMES)."""
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
    """The 2.5th and 97.5th percentiles (columns, names, 2) of the means over redrawn groups, and how many groups there are."""
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
    found = np.full((*columns.shape[1:], 2), np.nan)
    known = ~np.isnan(means).all(axis=0)  # a draw without any defined case has no mean
    found[known] = np.nanpercentile(means[:, known], [2.5, 97.5], axis=0).T
    return found, n_units


def _scores(values: NDArray[Any]) -> Scores:
    return Scores(**dict(zip(NAMES, values.tolist(), strict=True)))


def _mean(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """The mean of what is defined; NaN where nothing is."""
    defined = ~np.isnan(values)
    counted = defined.sum(axis=axis)
    total = np.where(defined, values, 0).sum(axis=axis)
    mean: NDArray[Any] = np.where(counted > 0, total / np.maximum(counted, 1), np.nan)
    return mean
