"""Compares the metrics of ml_core with MONAI's and with numbers counted by hand, on masks small enough to count.

    python -m benchmarks.metrics_check

Prints a table in Markdown. The numbers by hand are counted on the drawing, or computed by a few lines of SciPy that
share no code with ml_core.measures (from all distances between all surface pixels).
tests/ml_core/measures/test_metrics.py asserts the same rows.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.surface_dice import compute_surface_dice
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import cdist

from ml_core.measures.metrics import TOLERANCE, class_metrics

Mask = NDArray[np.bool_]
SHOWN = ("dice", "hd95", "nsd")
# Metric → why ours differs from MONAI's when a mask is empty.
LEFT_OUT = {
    "hd95": "MONAI's is NaN and left out of its means; ours is the image's diagonal and counts",
    "dice": "MONAI's is NaN unless told otherwise, and left out of its means; ours is 0 and counts",
}


@dataclass(frozen=True)
class Check:
    """One pair of masks. `by_hand` has the metrics that can be counted by hand; spacing is in mm, None for pixels."""

    name: str
    reference: Mask
    prediction: Mask
    spacing: tuple[float, ...] | None
    by_hand: dict[str, float]


def box(shape: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...]) -> Mask:
    """A filled box."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))] = True
    return mask


def checks() -> list[Check]:
    """The pairs of masks, in 2D and 3D. Those with empty masks come last."""
    flat, deep = (12, 12), (6, 10, 10)
    square, moved = box(flat, (2, 2), (4, 4)), box(flat, (2, 4), (4, 4))
    cube, cube_moved = box(deep, (1, 2, 2), (3, 4, 4)), box(deep, (2, 2, 2), (3, 4, 4))
    speck = square | box(flat, (11, 11), (1, 1))
    rng = np.random.default_rng(0)
    blob, other = (ndimage.gaussian_filter(rng.normal(size=(14, 40, 36)), (1, 3, 3)) > 0.04 for _ in range(2))
    nothing, nan = np.zeros(flat, bool), math.nan
    diagonal = math.hypot(12, 12)
    return [
        Check("equal squares", square, square, None, {"dice": 1, "hd95": 0, "nsd": 1, "volume_error": 0}),
        Check("4 x 4 square moved by 2 px", square, moved, None, {"dice": 0.5, "iou": 1 / 3, "hd95": 2, "nsd": 1}),
        # Each square has 12 border pixels. 6 lie in the columns of both squares, within 1 mm of the other border. The
        # other 6 are at least 3 mm away.
        Check("the same, 1 x 3 mm", square, moved, (1, 3), {"dice": 0.5, "hd95": 6, "nsd": 0.5}),
        Check("cube moved by a slice of 5 mm", cube, cube_moved, (5, 0.7, 0.7),
              {"dice": 2 / 3, "hd95": 5, "volume_error": 0, **_by_brute_force(cube, cube_moved, (5, 0.7, 0.7))}),
        Check("square and a speck far away", square, speck, None,
              {"dice": 32 / 33, "volume_error": 1, **_by_brute_force(square, speck, (1, 1))}),
        Check("random blobs, 3 x 0.8 x 1.1 mm", blob, other, (3, 0.8, 1.1), _by_brute_force(blob, other, (3, 0.8, 1.1))),
        Check("class at the image's border", box(flat, (0, 0), (12, 5)), box(flat, (0, 0), (12, 8)), None,
              {"dice": 120 / 156, "hd95": 3, "volume_error": 36}),
        Check("in both, no pixel in common", box(flat, (0, 0), (2, 2)), box(flat, (0, 10), (2, 2)), None,
              {"dice": 0, "hd95": 10, "nsd": 0, "volume_error": 0}),
        Check("not found: prediction empty", square, nothing, None,
              {"dice": 0, "precision": 0, "hd95": diagonal, "nsd": 0, "volume_error": -16, "volume_error_relative": -1}),
        Check("false alarm: reference empty", nothing, square, None,
              {"dice": 0, "recall": 0, "hd95": diagonal, "nsd": 0, "volume_error": 16, "volume_error_relative": 1}),
        Check("both empty", nothing, nothing, None, dict.fromkeys((*SHOWN, "volume_error"), nan)),
    ]  # fmt: skip


def monai_metrics(check: Check) -> dict[str, float]:
    """Dice, HD95 and NSD by MONAI, with its defaults and the same tolerance."""
    prediction, reference = (
        torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (check.prediction, check.reference)
    )
    spacing = [float(step) for step in check.spacing] if check.spacing else None
    with warnings.catch_warnings():
        # MONAI warns about empty masks.
        warnings.simplefilter("ignore")
        dice = compute_dice(prediction, reference)
        hd95 = compute_hausdorff_distance(
            prediction, reference, include_background=True, percentile=95, spacing=spacing
        )
        nsd = compute_surface_dice(prediction, reference, [TOLERANCE], include_background=True, spacing=spacing)
    return {"dice": float(dice), "hd95": float(hd95), "nsd": float(nsd)}


def _by_brute_force(reference: Mask, prediction: Mask, spacing: tuple[float, ...]) -> dict[str, float]:
    """HD95 and NSD from all distances between all pixels of both surfaces."""
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (reference, prediction)]
    distances = cdist(*(np.argwhere(surface) * spacing for surface in surfaces))
    directed = distances.min(axis=1), distances.min(axis=0)
    near = sum(int((values <= TOLERANCE + 1e-9).sum()) for values in directed)
    return {
        "hd95": max(float(np.percentile(values, 95)) for values in directed),
        "nsd": near / sum(len(values) for values in directed),
    }


def main() -> None:
    print("| case | number | ours | by hand or SciPy | MONAI | why it differs |")
    print("|---|---|---|---|---|---|")
    for check in checks():
        ours, theirs = class_metrics(check.reference, check.prediction, check.spacing), monai_metrics(check)
        for name in SHOWN + tuple(name for name in check.by_hand if name not in SHOWN):
            numbers = (getattr(ours, name), check.by_hand.get(name), theirs.get(name))
            same = name not in theirs or np.isclose(getattr(ours, name), theirs[name], atol=1e-5, equal_nan=True)
            print(f"| {check.name} | {name} | {' | '.join(map(_shown, numbers))} | {'' if same else LEFT_OUT[name]} |")


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    main()
