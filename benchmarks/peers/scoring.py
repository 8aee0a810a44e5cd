"""Scores the predictions of all peers alike: on whole images in their own grid, as means over the unseen cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import common
from ml_core.io import read_mask, stem
from ml_core.measures.metrics import case_metrics


def score(task: common.Task, predictions: Path) -> dict[str, Any]:
    """Score the predictions: {"unit": "mm" | "px", "classes": [{value, dice, hd95, cases, undefined, misses}]}.

    Classes are in the order of the task, background first. Each number is computed per case and then averaged. A miss
    counts as Dice 0. A class that is in neither mask of a case is undefined there and left out of the mean. Raises
    SystemExit if ml_core's Dice differs from `plain_dice`, and FileNotFoundError if a prediction is missing.
    """
    cases, spacing = [], None
    for pair in task.unseen:
        image, reference = common.load(pair, task.values)
        name, spacing = stem(pair[0]), image.spacing
        path = next((p for p in (predictions / f"{name}.png", predictions / f"{name}.nii.gz") if p.exists()), None)
        if path is None:
            raise FileNotFoundError(f"no prediction of {name}")
        indices = common.positions(read_mask(path, like=image).values, task.values)
        case = case_metrics(reference, indices, len(task.values), spacing)
        plain = [plain_dice(reference == index, indices == index) for index in range(len(task.values))]
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


def plain_dice(reference: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> float:
    """2 |A ∩ B| / (|A| + |B|), written as simply as possible, to check the Dice of ml_core."""
    size = int(reference.sum()) + int(prediction.sum())
    return 2 * int((reference & prediction).sum()) / size if size else float("nan")
