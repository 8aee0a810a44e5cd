"""Who a training learns from: an earlier split reused, or a new one that keeps patients and near-duplicates together."""

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
    """One split, or one per fold. A stored one is reused unless the user asked for another by its shares or folds; its test part
    stays locked even then, unless its share was asked for."""
    groups = [case.group for case in cases]
    if stored is not None and plan.folds == 1 and not wanted.asks_for("validation_fraction", "test_fraction"):
        return [reuse_split(stored, [case.id for case in cases], groups)]
    duplicates = duplicates_of(cases, folder)
    test = _stored_test(cases, groups, duplicates, stored) if not wanted.asks_for("test_fraction") else []
    rest = [position for position in range(len(cases)) if position not in set(test)]
    others = [groups[position] for position in rest]
    asked = plan.test_fraction if wanted.asks_for("test_fraction") else None
    fraction, linked = 0.0 if test else asked, [duplicates[position] for position in rest]
    if plan.folds > 1:
        splits = cross_validation(others, plan.folds, seed=plan.seed, test_fraction=fraction, duplicates=linked)
    else:
        share = plan.validation_fraction
        splits = [
            split_cases(others, seed=plan.seed, validation_fraction=share, test_fraction=fraction, duplicates=linked)
        ]
    if not test:
        return splits
    return [
        Split([rest[index] for index in split.train], [rest[index] for index in split.val], test, split.grouping)
        for split in splits
    ]


def duplicates_of(cases: list[Case], folder: Path) -> list[int]:
    """A number per case, equal for near-duplicates; all are different where there are too many to be compared."""
    if len(cases) > MAX_COMPARED:
        return list(range(len(cases)))
    signatures = in_order(partial(_signature, folder=folder), cases, threads_for(case.image for case in cases))
    return near_duplicate_groups(list(signatures))


def copies_held_out(cases: list[Case], split: StoredSplit, folder: Path) -> str | None:
    """A sentence where a split from elsewhere has a picture both to learn from and held out; None where it has not. The split names ids."""
    groups: dict[Name, int] = dict(zip((case.id for case in cases), duplicates_of(cases, folder), strict=True))
    learnt_from = {groups[name] for name in split.train}
    held_out = split.test or split.val
    copies = [case.name for case in cases if case.id in set(held_out) and groups[case.id] in learnt_from]
    if not copies:
        return None
    return (
        f"{len(copies)} of the {len(held_out)} held-out images look like one that is learnt from (copied, scaled, brightened or turned), "
        f"such as {copies[0]}, so the numbers are too good. Leave them out on one side."
    )


def stored_split(cases: list[Case], splits: list[Split]) -> StoredSplit:
    """By the ids of the cases: the first split, and all of them as folds where there are several."""
    stored = [split.to_names([case.id for case in cases]) for split in splits]
    return stored[0] if len(stored) == 1 else replace(stored[0], folds=[Fold(one.train, one.val) for one in stored])


def order_to_read(splits: list[Split]) -> tuple[list[int], int]:
    """Positions of the cases to learn from and to validate on, so that every beginning is spread evenly; and how many it takes at least.

    First one of each part, without which there is nothing to learn from or to validate on.
    """
    needed = list(dict.fromkeys(part[0] for split in splits for part in (split.train, split.val)))
    all_of_them = sorted(splits[0].train + splits[0].val)
    spread = [all_of_them[place] for place in spread_order(len(all_of_them))]
    return list(dict.fromkeys([*needed, *spread])), len(needed)


def same_again(cases: list[Case], stored: StoredSplit) -> list[Split] | None:
    """The splits that `stored_split` was made of, for a training that goes on; None where they are not of these very cases."""
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
    """The locked test part of the dataset, with what belongs to it; empty where there is none, or too little beside it."""
    if stored is None or not stored.test:
        return []
    try:
        split = reuse_split(stored, [case.id for case in cases], groups, duplicates=duplicates)
    except ConfigError:
        return []
    return split.test if len(split.train) + len(split.val) >= 2 else []


def unseen_classes(plan: Plan, train: list[StoredCase]) -> str | None:
    """A sentence about classes that only held-out cases show, which cannot be learnt; None where there are none."""
    names = [name for index, name in enumerate(plan.class_names) if not any(index in case.places for case in train)]
    if not names:
        return None
    which = "; ".join(names)
    return (
        f"No case that is learnt from shows {which}: the few that do are held out, so it cannot be found. Add cases with it, or choose "
        "another seed with a validation share of your own."
    )


def keep_signature(case: Case, folder: Path, found: NDArray[np.float16]) -> None:
    """Beside the decoded samples, for who has read the image already."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _signature_path(case, folder)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as out:
        np.save(out, found)
    os.replace(part, path)


def _signature_path(case: Case, folder: Path) -> Path:
    name = hashlib.sha256((case.key or str(case.image.resolve())).encode()).hexdigest()[:32]
    return folder / f"{name}.signature.npy"


def _signature(case: Case, folder: Path) -> NDArray[np.float16]:
    """Computed once per content."""
    try:
        return np.asarray(np.load(_signature_path(case, folder)))
    except (OSError, ValueError):
        pass  # not there yet
    try:
        found = signature(read_image(case.image))
    except ImageError as error:
        raise TrainingError(error.code, f"{case.name}: {error.reason}", error.cure) from error
    keep_signature(case, folder, found)
    return found
