"""Who a training learns from: an earlier split reused, or a new one that keeps patients and near-duplicates together."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from ml_core.config import Hyperparameters
from ml_core.data import Case
from ml_core.errors import ImageError, TrainingError
from ml_core.io import read_image
from ml_core.near_duplicates import near_duplicate_groups, signature
from ml_core.plan import Plan
from ml_core.splits import Split, cross_validation, reuse_split, split_cases


def split_job(
    cases: list[Case], plan: Plan, wanted: Hyperparameters, stored: dict[str, Any] | None, folder: Path
) -> list[Split]:
    """One split, or one per fold. A stored one is reused unless the user asked for another by its shares or folds."""
    groups = [case.group for case in cases]
    if stored is not None and plan.folds == 1 and wanted.validation_fraction is None and wanted.test_fraction is None:
        return [reuse_split(stored, [case.id for case in cases], groups)]
    duplicates = near_duplicate_groups([_signature(case, folder) for case in cases])
    if plan.folds > 1:
        return cross_validation(
            groups, plan.folds, seed=plan.seed, test_fraction=wanted.test_fraction, duplicates=duplicates
        )
    return [
        split_cases(
            groups,
            seed=plan.seed,
            validation_fraction=plan.validation_fraction,
            test_fraction=wanted.test_fraction,
            duplicates=duplicates,
        )
    ]


def _signature(case: Case, folder: Path) -> np.ndarray[Any, Any]:
    """Computed once per content and kept beside the decoded samples."""
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256((case.key or str(case.image.resolve())).encode()).hexdigest()[:32]
    path = folder / f"{name}.signature.npy"
    try:
        return np.asarray(np.load(path))
    except (OSError, ValueError):
        pass  # not there yet
    try:
        found = signature(read_image(case.image))
    except ImageError as error:
        raise TrainingError(error.code, f"{case.name}: {error.reason}", error.cure) from error
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as out:
        np.save(out, found)
    os.replace(part, path)
    return found
