"""Who is trained on and who is held out: by patient group, near-duplicates together, seeded, and stored as data."""

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
from ml_core.errors import ConfigError

TEST_FRACTION = 0.2
GROUPS_FOR_A_TEST_PART = 30  # a fifth of fewer is under six cases, and the interval of such a mean says nothing
BLOCKS = 10
PARTS = ("train", "val", "test")

Name = int | str
"""Of a case, outside of one training: its id, or what a file calls it."""


@dataclass(frozen=True)
class Split:
    """Positions of cases. `grouping` says in words what was kept together."""

    train: list[int]
    val: list[int]
    test: list[int]
    grouping: str

    @property
    def held_out(self) -> list[int]:
        """The cases for the final numbers: the test part, or the validation part where the data is too little for one."""
        return self.test or self.val

    def to_names(self, names: Sequence[Name]) -> StoredSplit:
        """To be stored. `names`: that of each position."""
        train, val, test = ([names[position] for position in part] for part in (self.train, self.val, self.test))
        return StoredSplit(train, val, test, self.grouping)


@dataclass(frozen=True)
class Fold(Document):
    """One of several ways to part the same cases in two."""

    train: Sequence[Name]
    """Who is learnt from."""
    val: Sequence[Name]
    """Who is validated on."""


@dataclass(frozen=True)
class StoredSplit(Document):
    """A split as it is stored: by the names of the cases, which stay while their positions change."""

    train: Sequence[Name] = field(default_factory=list)
    """Who is learnt from; of several folds the first one's."""
    val: Sequence[Name] = field(default_factory=list)
    """Who the best weights are chosen on; of several folds the first one's."""
    test: Sequence[Name] = field(default_factory=list)
    """Who is locked away for the final numbers; empty where the data is too little."""
    grouping: str = "as stored"
    """In words, what was kept together on one side."""
    folds: Annotated[list[Fold] | None, LeftOut] = None
    """All folds of a cross-validation, which share the test part."""

    def parts(self) -> dict[str, Sequence[Name]]:
        """Each of PARTS by its name."""
        return {part: getattr(self, part) for part in PARTS}


def join(count: int, pairs: ArrayLike) -> NDArray[np.int32]:
    """Group numbers 0, 1, ... in order of appearance for `count` things, of which `pairs` (M, 2) belong together."""
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
    """Split cases so that no group is on two sides. Needs two cases or more.

    `groups`: the patient of each case, "" for a case on its own; `duplicates`: a number for each case, equal for
    near-duplicates (ml_core.dataset.near_duplicates), which are kept together too. Fractions are of the units that arise.
    `test_fraction`: 0 to 0.5, 0 for no test part; None: a fifth if there are 30 units or more, else none.
    The test part depends on groups and duplicates alone and not on `seed`, so that it stays locked while trainings vary.

    All cases of one patient: neighbouring cases (by position) are kept together in 10 blocks, since slices beside each other
    look alike, with a test part from 10 cases on; the numbers then say little about other patients. The same where
    near-duplicates link more than half of all cases, such as the frames of a video; of several patients, the duplicates are
    then left apart and the patients stay whole. A patient with more than half of all cases is always trained on.
    """
    units = _plan_units(groups, duplicates)
    test, rest = _locked_test(units, test_fraction)
    largest, size = Counter(units.of_case).most_common(1)[0]
    movable = np.array([unit for unit in rest if unit != largest or size <= len(groups) / 2], int)
    shuffled = np.random.default_rng(seed).permutation(movable)
    n_val = min(max(1, round(validation_fraction * len(rest))), len(rest) - 1)
    return _split(units, val=shuffled[:n_val], test=test)


def cross_validation(
    groups: Sequence[str],
    folds: int,
    *,
    seed: int = 0,
    test_fraction: float | None = None,
    duplicates: Sequence[int] | None = None,
) -> list[Split]:
    """`folds` splits with the test part of `split_cases`; each of the other units is validated on in exactly one of them.

    Raises ConfigError (code folds) for fewer than two folds or more folds than there are units outside of the test part.
    """
    units = _plan_units(groups, duplicates)
    test, rest = _locked_test(units, test_fraction)
    if not 2 <= folds <= len(rest):
        raise ConfigError(
            "folds",
            f"{folds} folds cannot be made of what is trained on: {len(rest)} groups ({units.grouping}).",
            f"Choose 2 to {len(rest)} folds.",
        )
    shuffled = np.random.default_rng(seed).permutation(rest)
    return [_split(units, val=shuffled[fold::folds], test=test) for fold in range(folds)]


def reuse_split(
    stored: StoredSplit,
    names: Sequence[Name],
    groups: Sequence[str],
    *,
    duplicates: Sequence[int] | None = None,
) -> Split:
    """A stored split over the cases of today: who is in it keeps the side, who is gone is left out.

    `stored`: the names or ids of the cases of each part, and the grouping. `names`: that of each case of today.
    A new case is trained on, unless its patient or near-duplicates are held out: then it joins them (in the test part if
    they are in both). Where the stored split has a patient in training and held out at once (blocks of neighbours),
    the new case is trained on. Raises ConfigError (code split) where nothing is left to train on or to validate on.
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
        found = sides_of_unit[unit]
        beside = "train" if not found or "train" in found else min(found)  # "test" comes before "val"
        parts[side.get(name, beside)].append(position)
    if not parts["train"] or not parts["val"]:
        raise ConfigError(
            "split",
            "The stored split leaves no cases of this dataset to train on or to validate on.",
            "Train without it, which makes a new split.",
        )
    return Split(**parts, grouping=stored.grouping)


@dataclass(frozen=True)
class _Units:
    """What cannot be divided: the unit 0, 1, ... of each case. `enough`: for a test part that was not asked for."""

    of_case: list[int]
    grouping: str
    enough: bool


def _plan_units(groups: Sequence[str], duplicates: Sequence[int] | None) -> _Units:
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
    return [group or f"case {position}" for position, group in enumerate(groups)]


def _joined_units(keys: Sequence[str], duplicates: Sequence[int] | None) -> list[int]:
    """Numbers in order of appearance, equal for cases with one key or one duplicate number, also through others."""
    pairs: list[tuple[int, int]] = []
    for marks in (keys, duplicates or range(len(keys))):
        first: dict[Hashable, int] = {}
        pairs += [(first.setdefault(mark, position), position) for position, mark in enumerate(marks)]
    return [int(unit) for unit in join(len(keys), pairs)]


def _locked_test(units: _Units, fraction: float | None) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Units of the test part, and the others in ascending order; two at least are left for training and validation."""
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
    side = dict.fromkeys(val.tolist(), "val") | dict.fromkeys(test.tolist(), "test")
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    for position, unit in enumerate(units.of_case):
        parts[side.get(unit, "train")].append(position)
    return Split(**parts, grouping=units.grouping)
