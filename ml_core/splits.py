"""Who is trained on and who is held out: by patient group, seeded, and stored as data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TEST_FRACTION = 0.2
GROUPS_FOR_A_TEST_PART = 10
BLOCKS = 10


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


def group_of_name(name: str) -> str:
    """The patient that a file name tells: the BIDS entity `sub-X`; "" where there is none."""
    found = re.search(r"(?:^|[^a-z0-9])(sub-[a-z0-9]+)", name, re.IGNORECASE)
    return found[1].lower() if found else ""


def split_cases(groups: Sequence[str], *, seed: int = 0, validation_fraction: float = 0.2) -> Split:
    """Split cases so that no group is on two sides. `groups`: the patient of each case, "" for a case on its own.

    The test part (a fifth of the groups, from 10 groups on) depends on the groups alone and not on `seed`, so that it stays
    locked while trainings vary. All cases of one patient: neighbouring cases (by position) are kept together in blocks,
    since slices beside each other look alike; the numbers then say little about other patients. Needs two cases or more.
    """
    if len(groups) < 2:
        raise ValueError("a split needs at least two cases")
    named = {group for group in groups if group}
    if len(named) == 1 and "" not in groups:
        blocks = min(BLOCKS, len(groups))
        keys = [f"block {position * blocks // len(groups)}" for position in range(len(groups))]
        grouping = "blocks of neighbouring cases, because all come from one patient"
    else:
        keys = [group or f"case {position}" for position, group in enumerate(groups)]
        grouping = "patient" if named else "file"
    units = list(dict.fromkeys(keys))
    locked = np.random.default_rng(len(units)).permutation(len(units))
    n_test = round(TEST_FRACTION * len(units)) if len(units) >= GROUPS_FOR_A_TEST_PART else 0
    rest = np.sort(locked[n_test:])
    shuffled = np.random.default_rng(seed).permutation(rest)
    n_val = min(max(1, round(validation_fraction * len(rest))), len(rest) - 1)
    side = {units[index]: "train" for index in shuffled[n_val:]}
    side |= {units[index]: "val" for index in shuffled[:n_val]}
    side |= {units[index]: "test" for index in locked[:n_test]}
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for position, key in enumerate(keys):
        parts[side[key]].append(position)
    return Split(parts["train"], parts["val"], parts["test"], grouping)
