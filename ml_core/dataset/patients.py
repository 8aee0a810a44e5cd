"""Which cases are one patient's, as far as names tell: for a split that keeps each patient on one side."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

BY_NAME = "name "  # how a group begins that was found by what names have in common, and that nobody told
MIN_GROUPS = 5  # fewer are as likely to be classes, centres or years, and too few to be divided
LARGEST = 1 / 3  # of all cases; one that has more is hardly a patient
MAX_PARTS = 3  # numbers in a name that are tried
LONGEST = 64  # characters of a group


def group_of_name(name: str) -> str:
    """The patient that a file name tells: the BIDS entity `sub-X`; "" where there is none."""
    found = re.search(r"(?:^|[^a-z0-9])(sub-[a-z0-9]+)", name, re.IGNORECASE)
    return found[1].lower() if found else ""


def groups_of_names(names: Sequence[str]) -> list[str]:
    """A group per name, where the names show that several cases each come from one patient; else "" for all.

    Folders and words count alike: TCGA_4941/TCGA_4941_12 and volume-3_slice_045 belong to TCGA_4941 and volume-3, what comes
    before being the name up to its first number (or second, or third). It is taken for a patient's where there are MIN_GROUPS
    or more, of two cases on average or more, none of them with more than LARGEST of all cases.
    """
    for parts in range(1, MAX_PARTS + 1):
        keys = [_beginning(name, parts) for name in names]
        sizes = Counter(keys)
        several = len(sizes) >= MIN_GROUPS and len(names) >= 2 * len(sizes)
        if several and max(sizes.values()) <= LARGEST * len(names):
            return [BY_NAME + _short(key) for key in keys]
    return [""] * len(names)


def _beginning(name: str, parts: int) -> str:
    """The name up to the end of its `parts`-th word with a number in it; all of it where it has not as many."""
    numbered = list(re.finditer(r"[^\W_]*\d[^\W_]*", name))
    return name[: numbered[parts - 1].end()] if len(numbered) >= parts else name


def _short(key: str) -> str:
    most = LONGEST - len(BY_NAME)
    return key if len(key) <= most else hashlib.sha256(key.encode()).hexdigest()[:24]
