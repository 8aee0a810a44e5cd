"""What the store says otherwise than the rows."""

from __future__ import annotations

from medseg_site.shared.recovery.verify import Problem, verify


def find_problems(*, quick: bool = False) -> list[Problem]:
    return verify(quick=quick).open_problems
