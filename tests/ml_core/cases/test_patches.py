"""Cases that stay mapped: few files, few bytes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ml_core.cases.patches import MAPPED_BYTES, MAPPED_CASES, _MappedCases


def case(name: str, nbytes: int) -> Any:
    """Its arrays take no memory."""
    images = np.broadcast_to(np.float16(0), nbytes // 4)
    return SimpleNamespace(stem=Path(name), images=images, labels=np.broadcast_to(np.uint8(0), nbytes // 2))


def test_never_more_cases_are_mapped_than_files_may_be_open() -> None:
    mapped = _MappedCases()
    for number in range(2 * MAPPED_CASES):
        mapped.of(case(str(number), 1000))
    assert [path.name for path in mapped._arrays] == [str(number) for number in range(MAPPED_CASES, 2 * MAPPED_CASES)]


def test_cases_used_last_stay_and_a_huge_one_stays_alone() -> None:
    mapped = _MappedCases()
    first = mapped.of(case("first", MAPPED_BYTES // 2))
    mapped.of(case("second", MAPPED_BYTES // 2))
    assert mapped.of(case("first", MAPPED_BYTES // 2)) is first
    mapped.of(case("third", MAPPED_BYTES // 4))
    assert {path.name for path in mapped._arrays} == {"first", "third"}
    huge = mapped.of(case("huge", 5 * MAPPED_BYTES))
    assert mapped.of(case("huge", 5 * MAPPED_BYTES)) is huge
    assert [path.name for path in mapped._arrays] == ["huge"]
