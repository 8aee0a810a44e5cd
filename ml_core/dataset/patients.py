"""Guess from names which cases belong to one patient, so that a split can keep each patient on one side."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

# A group that was only guessed from names begins with this.
BY_NAME = "name "
# Fewer groups are too few to be divided, and are as likely to be classes, centres or years.
MIN_GROUPS = 5
# Share of all cases. A larger group is hardly one patient.
LARGEST = 1 / 3
# Beginnings of a name that are tried: up to its first number, its second, and its third.
MAX_PARTS = 3
# Characters of a group.
LONGEST = 64


def group_of_name(name: str) -> str:
    """Return the patient that a file name states as the BIDS entity `sub-X`, or "" if it states none."""
    entity = re.search(r"(?:^|[^a-z0-9])(sub-[a-z0-9]+)", name, re.IGNORECASE)
    return entity[1].lower() if entity else ""


def groups_of_names(names: Sequence[str]) -> list[str]:
    """Group names that begin alike, each group standing for a patient; "" for all if no such groups show.

    The beginning is the name up to its first number (or its second, or its third), whether folders or words: the group
    of TCGA_4941/TCGA_4941_12 is TCGA_4941, and that of volume-3_slice_045 is volume-3. The groups are taken for
    patients if there are MIN_GROUPS or more, with two cases or more on average, and none has more than LARGEST of all
    cases.
    """
    for parts in range(1, MAX_PARTS + 1):
        keys = [_beginning(name, parts) for name in names]
        sizes = Counter(keys)
        several = len(sizes) >= MIN_GROUPS and len(names) >= 2 * len(sizes)
        if several and max(sizes.values()) <= LARGEST * len(names):
            return [BY_NAME + _short(key) for key in keys]
    return [""] * len(names)


def _beginning(name: str, parts: int) -> str:
    """Return the name up to the end of its `parts`-th word with a digit, or the whole name if it has fewer."""
    numbered = list(re.finditer(r"[^\W_]*\d[^\W_]*", name))
    return name[: numbered[parts - 1].end()] if len(numbered) >= parts else name


def _short(key: str) -> str:
    """Return the key of a group, or a hash of it if it would make the group longer than LONGEST."""
    max_length = LONGEST - len(BY_NAME)
    return key if len(key) <= max_length else hashlib.sha256(key.encode()).hexdigest()[:24]
