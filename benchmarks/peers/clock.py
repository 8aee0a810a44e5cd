"""The training budget. Only the standard library: nnU-Net's environment imports it too."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class Clock:
    """A wall-clock budget in seconds that starts when it is made: after the imports, before the first file is read.

    A step begins only if at least half of it (by the mean so far) fits, so that peers with steps of minutes end as near
    to the budget as those with steps of milliseconds: `seconds` says when the last step really ended.
    """

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.wall = time.time()
        self.seconds = 0.0
        self.steps = 0
        self._started = time.monotonic()
        self._first: float | None = None

    def go_on(self) -> bool:
        """Whether another step begins. Ask before every step."""
        now = time.monotonic()
        self.seconds = now - self._started
        if self._first is None:
            self._first = now
            return True
        self.steps += 1
        mean = (now - self._first) / self.steps
        return self.seconds + mean / 2 <= self.budget

    def report(self, folder: Path, *, unit: str, units: int, predict_seconds: float, **more: Any) -> None:
        """Write report.json: what the table needs besides the predictions. `units` (crops, patches) were learned from, with repeats."""
        before = (self._first or self._started) - self._started
        found = {
            "train_started": self.wall,
            "train_seconds": self.seconds,
            "before_steps_seconds": before,
            "steps": self.steps,
            "unit_learned": unit,
            "units_per_second": units / (self.seconds - before),
            "predict_seconds": predict_seconds,
            **more,
        }
        (folder / "report.json").write_text(json.dumps(found))
