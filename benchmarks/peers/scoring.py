"""One scorer for all peers: per class, the mean over the unseen cases on full images in their own grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import common
from ml_core.io import read_mask, stem
from ml_core.measures.metrics import case_metrics


def score(task: common.Task, predictions: Path) -> dict[str, Any]:
    """{"unit": "mm" | "px", "classes": [{value, dice, hd95, cases, undefined, misses}]}, background first.

    Each number is computed per case and then averaged; a miss counts as Dice 0. A class that is in neither mask of a
    case is undefined there and left out of its mean. Raises SystemExit where the plain Dice disagrees with ml_core's,
    FileNotFoundError where a prediction is missing.
    """
    cases, spacing = [], None
    for pair in task.unseen:
        image, reference = common.load(pair, task.values)
        name, spacing = stem(pair[0]), image.spacing
        path = next((p for p in (predictions / f"{name}.png", predictions / f"{name}.nii.gz") if p.exists()), None)
        if path is None:
            raise FileNotFoundError(f"no prediction of {name}")
        found = common.positions(read_mask(path, like=image).values, task.values)
        case = case_metrics(reference, found, len(task.values), spacing)
        plain = [plain_dice(reference == index, found == index) for index in range(len(task.values))]
        if not np.allclose([entry.dice for entry in case], plain, atol=1e-9, equal_nan=True):
            raise SystemExit(f"{name}: Dice {case} and by plain numpy {plain}")
        cases.append(case)
    classes = []
    for index, value in enumerate(task.values):
        dice = np.array([case[index].dice for case in cases])
        hd95 = np.array([case[index].hd95 for case in cases])
        defined = ~np.isnan(dice)
        classes.append(
            {
                "value": value,
                "dice": float(dice[defined].mean()) if defined.any() else None,
                "hd95": float(hd95[defined].mean()) if defined.any() else None,
                "cases": int(defined.sum()),
                "undefined": int((~defined).sum()),
                "misses": int((dice == 0).sum()),
            }
        )
    return {"unit": "mm" if spacing else "px", "classes": classes}


def plain_dice(reference: NDArray[np.bool_], found: NDArray[np.bool_]) -> float:
    """2 |A ∩ B| / (|A| + |B|), in the fewest words, to hold ml_core's own against."""
    size = int(reference.sum()) + int(found.sum())
    return 2 * int((reference & found).sum()) / size if size else float("nan")
