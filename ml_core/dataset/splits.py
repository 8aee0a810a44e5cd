"""Split cases into those that are trained on and those that are held out.

A split keeps each patient, and near-duplicates, on one side. It is drawn by a seed, and stored as data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ml_core.dataset.patients import BY_NAME
from ml_core.documents import Document, LeftOut
from ml_core.errors import ConfigError, count_of

TEST_FRACTION = 0.2
# A fifth of fewer groups is under six. The confidence interval of a mean over so few is too wide to say anything.
GROUPS_FOR_A_TEST_PART = 30
# The cases of one patient are divided into this many blocks of neighbours.
BLOCKS = 10
PARTS = ("train", "val", "test")

Name = int | str
"""What identifies a case in every training: its id, or its name in a file."""


@dataclass(frozen=True)
class Split:
    """A split by the positions of the cases in one training."""

    train: list[int]
    val: list[int]
    test: list[int]
    grouping: str
    """What was kept together on one side, in words."""

    @property
    def held_out(self) -> list[int]:
        """The cases for the final metrics: the test part, or the validation part if there is no test part."""
        return self.test or self.val

    def to_names(self, names: Sequence[Name]) -> StoredSplit:
        """Return this split by names, to be stored. `names` are those of the cases, by position."""
        train, val, test = ([names[position] for position in part] for part in (self.train, self.val, self.test))
        return StoredSplit(train, val, test, self.grouping)


@dataclass(frozen=True)
class Fold(Document):
    """One fold of a cross-validation: one of several ways to divide the same cases."""

    train: Sequence[Name]
    """The cases to train on."""
    val: Sequence[Name]
    """The cases to validate on."""


@dataclass(frozen=True)
class StoredSplit(Document):
    """A split as it is stored: by the names of the cases, because their positions can change."""

    train: Sequence[Name] = field(default_factory=list)
    """The cases to train on; in a cross-validation, those of the first fold."""
    val: Sequence[Name] = field(default_factory=list)
    """The cases by which the best weights are chosen; in a cross-validation, those of the first fold."""
    test: Sequence[Name] = field(default_factory=list)
    """The cases that are used for the final metrics only; empty if there are too few cases."""
    grouping: str = "as stored"
    """What was kept together on one side, in words."""
    folds: Annotated[list[Fold] | None, LeftOut] = None
    """All folds of a cross-validation, which share the test part; None for a single split."""

    def parts(self) -> dict[str, Sequence[Name]]:
        """The cases of each part, by the part's name in PARTS."""
        return {part: getattr(self, part) for part in PARTS}


def join(count: int, pairs: ArrayLike) -> NDArray[np.int32]:
    """Number the groups 0, 1, ... that `pairs` (M, 2) of positions connect, in order of appearance: (count,) int32."""
    rows, columns = np.asarray(pairs, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(count, count))
    numbers: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return numbers


def split_cases(
    groups: Sequence[str],
    *,
    seed: int = 0,
    validation_fraction: float = 0.15,
    test_fraction: float | None = None,
    duplicates: Sequence[int] | None = None,
) -> Split:
    """Split cases so that no patient is on two sides.

    `groups` has the patient of each case, or "" for a case on its own. `duplicates` has a number for each case, equal
    for near-duplicates (ml_core.dataset.near_duplicates), which are kept together too. Cases that are kept together
    form a unit, and the fractions count units. `test_fraction` is 0 to 0.5, and 0 gives no test part. None gives a test
    part of a fifth if there are 30 units or more, and otherwise none. The test part depends on groups and duplicates
    alone, not on `seed`, so that it stays the same while trainings vary.

    If all cases come from one patient, neighbouring cases (by position) form 10 blocks, because neighbouring slices
    look alike; there is a test part from 10 cases on. The metrics then say little about other patients. Blocks are also
    formed if near-duplicates link more than half of all cases, as in the frames of a video. If there are several
    patients, near-duplicates are ignored instead, and each patient stays whole. A patient with more than half of all
    cases is always trained on. Raises ValueError for fewer than two cases or a wrong `test_fraction`.
    """
    units = _plan_units(groups, duplicates)
    test, others = _locked_test(units, test_fraction)
    largest, size = Counter(units.of_case).most_common(1)[0]
    movable = np.array([unit for unit in others if unit != largest or size <= len(groups) / 2], int)
    shuffled = np.random.default_rng(seed).permutation(movable)
    n_val = min(max(1, round(validation_fraction * len(others))), len(others) - 1)
    return _split(units, val=shuffled[:n_val], test=test)


def cross_validation(
    groups: Sequence[str],
    folds: int,
    *,
    seed: int = 0,
    test_fraction: float | None = None,
    duplicates: Sequence[int] | None = None,
) -> list[Split]:
    """Make `folds` splits that share the test part of `split_cases`.

    Each unit outside the test part is validated on in exactly one split. Raises ConfigError folds for fewer than two
    folds, or for more folds than units outside the test part.
    """
    units = _plan_units(groups, duplicates)
    test, others = _locked_test(units, test_fraction)
    if not 2 <= folds <= len(others):
        available = count_of(len(others), "group")
        raise ConfigError(
            "folds",
            f"{count_of(folds, 'fold')} cannot be made of the {available} outside the test part ({units.grouping}).",
            f"Choose 2 to {len(others)} folds.",
        )
    shuffled = np.random.default_rng(seed).permutation(others)
    return [_split(units, val=shuffled[fold::folds], test=test) for fold in range(folds)]


def reuse_split(
    stored: StoredSplit,
    names: Sequence[Name],
    groups: Sequence[str],
    *,
    duplicates: Sequence[int] | None = None,
) -> Split:
    """Apply a stored split to the present cases. A case in it keeps its part; a case that no longer exists is dropped.

    `names` are the names or ids of the present cases; `groups` and `duplicates` are as in `split_cases`. A new case is
    trained on, unless its patient or its near-duplicates are held out: then it joins them, in the test part if they are
    in both held-out parts. If the stored split has a patient both in training and held out (blocks of neighbours), the
    new case is trained on. Raises ConfigError split if a case is in two parts, or if no case is left to train on or to
    validate on.
    """
    side: dict[Name, str] = {}
    for part, members in stored.parts().items():
        for name in members:
            if side.setdefault(name, part) != part:
                raise ConfigError("split", f"Case {name} is in two parts of the stored split.", "Remove it from one.")
    units = _joined_units(_keys(groups), duplicates)
    sides_of_unit: dict[int, set[str]] = {}
    for unit, name in zip(units, names, strict=True):
        sides_of_unit.setdefault(unit, set()).update({side[name]} if name in side else ())
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    for position, (unit, name) in enumerate(zip(units, names, strict=True)):
        sides = sides_of_unit[unit]
        # min() prefers "test" to "val", as it compares the words.
        default = "train" if not sides or "train" in sides else min(sides)
        parts[side.get(name, default)].append(position)
    if not parts["train"] or not parts["val"]:
        raise ConfigError(
            "split",
            "The stored split leaves no cases of this dataset to train on or to validate on.",
            "Train without it, which makes a new split.",
        )
    return Split(**parts, grouping=stored.grouping)


@dataclass(frozen=True)
class _Units:
    """The units of a split: cases that must stay together."""

    of_case: list[int]
    """The unit (0, 1, ...) of each case."""
    grouping: str
    """What the units keep together, in words."""
    enough: bool
    """There are enough units for a test part by default."""


def _plan_units(groups: Sequence[str], duplicates: Sequence[int] | None) -> _Units:
    """Decide which cases must stay together, by the rules of `split_cases`."""
    count = len(groups)
    if count < 2:
        raise ValueError("a split needs at least two cases")
    patients = {group for group in groups if group}
    one_patient = len(patients) == 1 and "" not in groups
    blocks = [f"block {position * min(BLOCKS, count) // count}" for position in range(count)]
    keys = blocks if one_patient else _keys(groups)
    units, alone = _joined_units(keys, duplicates), _joined_units(keys, None)
    linked = units != alone
    too_many = linked and max(Counter(units).values()) > max(count / 2, *Counter(alone).values())
    if one_patient:
        grouping = "blocks of neighbouring cases, because all come from one patient"
    elif too_many and not patients:
        grouping = "blocks of neighbouring cases, because most look alike, such as the frames of a video"
        units = _joined_units(blocks, None)
    else:
        by_name = patients and all(group.startswith(BY_NAME) for group in patients)
        grouping = "patient as the names tell" if by_name else "patient" if patients else "file"
    if too_many and (one_patient or patients):
        grouping += "; near-duplicates were left apart, because they link more than half of all cases"
        units = alone
    elif linked and not too_many:
        grouping += "; near-duplicates together"
    in_blocks = grouping.startswith("blocks")
    return _Units(units, grouping, count >= BLOCKS if in_blocks else max(units) + 1 >= GROUPS_FOR_A_TEST_PART)


def _keys(groups: Sequence[str]) -> list[str]:
    """The group of each case; a case without group gets one of its own."""
    return [group or f"case {position}" for position, group in enumerate(groups)]


def _joined_units(keys: Sequence[str], duplicates: Sequence[int] | None) -> list[int]:
    """Number the units in order of appearance. Cases with the same key or the same duplicate number share a unit.

    Two cases that each share a unit with a third are in one unit.
    """
    pairs: list[tuple[int, int]] = []
    for marks in (keys, duplicates or range(len(keys))):
        first: dict[Hashable, int] = {}
        pairs += [(first.setdefault(mark, position), position) for position, mark in enumerate(marks)]
    return [int(unit) for unit in join(len(keys), pairs)]


def _locked_test(units: _Units, fraction: float | None) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the units of the test part and, ascending, the others. At least two are left to train and validate on.

    The test part is drawn by the number of units instead of a training's seed, so that all trainings share it.
    """
    if fraction is not None and not 0 <= fraction <= 0.5:
        raise ValueError("test_fraction must lie between 0 and 0.5")
    count = max(units.of_case) + 1
    locked = np.random.default_rng(count).permutation(count)
    largest, size = Counter(units.of_case).most_common(1)[0]
    movable = locked[(locked != largest) | (size <= len(units.of_case) / 2)]
    share = (TEST_FRACTION if units.enough else 0.0) if fraction is None else fraction
    n_test = min(max(1, round(share * count)), count - 2) if share > 0 else 0
    test = movable[:n_test]
    return test, np.setdiff1d(locked, test)


def _split(units: _Units, *, val: NDArray[np.intp], test: NDArray[np.intp]) -> Split:
    """Turn the units of the held-out parts into a split of cases. All other units are trained on."""
    side = dict.fromkeys(val.tolist(), "val") | dict.fromkeys(test.tolist(), "test")
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    for position, unit in enumerate(units.of_case):
        parts[side.get(unit, "train")].append(position)
    return Split(**parts, grouping=units.grouping)
