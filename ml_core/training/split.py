"""Splits the cases of a training by reusing a stored split, or by making one that keeps each patient on one side."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ml_core.cases.store import StoredCase
from ml_core.dataset.case import Case, spread_order
from ml_core.dataset.findings import MAX_COMPARED
from ml_core.dataset.near_duplicates import near_duplicate_groups, signature
from ml_core.dataset.splits import Fold, Name, Split, StoredSplit, cross_validation, reuse_split, split_cases
from ml_core.errors import ConfigError, ImageError, TrainingError
from ml_core.files import in_order, threads_for
from ml_core.io import read_image
from ml_core.planning.plan import Plan
from ml_core.planning.request import TrainingRequest


def split_job(
    cases: list[Case], plan: Plan, wanted: TrainingRequest, stored: StoredSplit | None, folder: Path
) -> list[Split]:
    """Make one split, or one for each fold.

    stored: the dataset's split. It is reused unless the user chose shares or folds. Its test part is kept even then,
    unless the user chose the share of the test part. wanted: the user's choices. folder: for the images' signatures.
    """
    groups = [case.group for case in cases]
    if stored is not None and plan.folds == 1 and not wanted.asks_for("validation_fraction", "test_fraction"):
        return [reuse_split(stored, [case.id for case in cases], groups)]
    duplicates = duplicates_of(cases, folder)
    test = _stored_test(cases, groups, duplicates, stored) if not wanted.asks_for("test_fraction") else []
    remaining = [position for position in range(len(cases)) if position not in set(test)]
    remaining_groups = [groups[position] for position in remaining]
    test_fraction = plan.test_fraction if wanted.asks_for("test_fraction") else None
    fraction, remaining_duplicates = 0.0 if test else test_fraction, [duplicates[position] for position in remaining]
    if plan.folds > 1:
        splits = cross_validation(
            remaining_groups, plan.folds, seed=plan.seed, test_fraction=fraction, duplicates=remaining_duplicates
        )
    else:
        share = plan.validation_fraction
        splits = [
            split_cases(
                remaining_groups,
                seed=plan.seed,
                validation_fraction=share,
                test_fraction=fraction,
                duplicates=remaining_duplicates,
            )
        ]
    if not test:
        return splits
    return [
        Split(
            [remaining[index] for index in split.train], [remaining[index] for index in split.val], test, split.grouping
        )
        for split in splits
    ]


def duplicates_of(cases: list[Case], folder: Path) -> list[int]:
    """A number for each case, equal for near-duplicates. More than MAX_COMPARED cases all get different numbers.

    folder: for the images' signatures, which are computed once. Raises TrainingError for an image that cannot be read.
    """
    if len(cases) > MAX_COMPARED:
        return list(range(len(cases)))
    signatures = in_order(partial(_signature, folder=folder), cases, threads_for(case.image for case in cases))
    return near_duplicate_groups(list(signatures))


def copies_held_out(cases: list[Case], split: StoredSplit, folder: Path) -> str | None:
    """A warning if a held-out image is a near-duplicate of one that is learnt from; None if there is none.

    split: one that was made elsewhere, by the ids of the cases.
    """
    groups: dict[Name, int] = dict(zip((case.id for case in cases), duplicates_of(cases, folder), strict=True))
    learnt_from = {groups[name] for name in split.train}
    held_out = split.test or split.val
    copies = [case.name for case in cases if case.id in set(held_out) and groups[case.id] in learnt_from]
    if not copies:
        return None
    return (
        f"{len(copies)} of the {len(held_out)} held-out images look like one that is learnt from (copied, scaled, "
        f"brightened or turned), such as {copies[0]}, so the numbers are too good. Leave them out on one side."
    )


def stored_split(cases: list[Case], splits: list[Split]) -> StoredSplit:
    """Name the cases of the splits by their ids: the first split, and all as folds if there are several."""
    stored = [split.to_names([case.id for case in cases]) for split in splits]
    return stored[0] if len(stored) == 1 else replace(stored[0], folds=[Fold(fold.train, fold.val) for fold in stored])


def order_to_read(splits: list[Split]) -> tuple[list[int], int]:
    """The positions of the cases to train and validate on, in the order to read them, and how many must be read.

    The first ones are a case of each part, without which there is nothing to learn from or to validate on. The others
    are ordered so that, wherever reading stops, the cases read are spread evenly over all.
    """
    needed = list(dict.fromkeys(part[0] for split in splits for part in (split.train, split.val)))
    positions = sorted(splits[0].train + splits[0].val)
    spread = [positions[place] for place in spread_order(len(positions))]
    return list(dict.fromkeys([*needed, *spread])), len(needed)


def same_again(cases: list[Case], stored: StoredSplit) -> list[Split] | None:
    """The inverse of `stored_split`, for a training that goes on; None if the split is not of exactly these cases."""
    positions: dict[Name, int] = {case.id: position for position, case in enumerate(cases)}
    splits = []
    for fold in stored.folds or [Fold(stored.train, stored.val)]:
        parts = [fold.train, fold.val, stored.test]
        named = [name for part in parts for name in part]
        if len(named) != len(positions) or set(named) != set(positions):
            return None
        train, val, test = ([positions[name] for name in part] for part in parts)
        splits.append(Split(train, val, test, stored.grouping))
    return splits


def _stored_test(cases: list[Case], groups: list[str], duplicates: list[int], stored: StoredSplit | None) -> list[int]:
    """The positions of the dataset's test part, with the patients' other images and near-duplicates.

    Empty if there is no test part, or if fewer than two cases are left beside it.
    """
    if stored is None or not stored.test:
        return []
    try:
        split = reuse_split(stored, [case.id for case in cases], groups, duplicates=duplicates)
    except ConfigError:
        return []
    return split.test if len(split.train) + len(split.val) >= 2 else []


def unseen_classes(plan: Plan, train: list[StoredCase]) -> str | None:
    """A warning about classes that no case to learn from shows; None if all are shown."""
    names = [name for index, name in enumerate(plan.class_names) if not any(index in case.places for case in train)]
    if not names:
        return None
    which = "; ".join(names)
    return (
        f"No case that is learnt from shows {which}, because the few that do are held out, so the model cannot find "
        "it. Add cases with it, or choose another seed with a validation share of your own."
    )


def keep_signature(case: Case, folder: Path, values: NDArray[np.float16]) -> None:
    """Store the signature of a case beside the decoded samples, for a caller that has read the image already."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _signature_path(case, folder)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as out:
        np.save(out, values)
    os.replace(part, path)


def _signature_path(case: Case, folder: Path) -> Path:
    name = hashlib.sha256((case.key or str(case.image.resolve())).encode()).hexdigest()[:32]
    return folder / f"{name}.signature.npy"


def _signature(case: Case, folder: Path) -> NDArray[np.float16]:
    """The signature of a case's image. It is computed once for each content and then read from `folder`."""
    try:
        return np.asarray(np.load(_signature_path(case, folder)))
    except (OSError, ValueError):
        # It has not been stored yet, or is damaged.
        pass
    try:
        computed = signature(read_image(case.image))
    except ImageError as error:
        raise TrainingError(error.code, f"{case.name}: {error.reason}", error.cure) from error
    keep_signature(case, folder, computed)
    return computed
