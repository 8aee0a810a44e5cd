"""The clock of a training budget. It uses only the standard library, because nnU-Net's environment imports it too."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class Clock:
    """A budget of wall-clock seconds, which starts when the clock is made: after the imports, before any file is read.

    A step may begin only if at least half of its mean duration so far still fits. So peers with steps of minutes end as
    near to the budget as peers with steps of milliseconds. `seconds` is when the last step ended.
    """

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.wall = time.time()
        self.seconds = 0.0
        self.steps = 0
        self._started = time.monotonic()
        self._first: float | None = None

    def go_on(self) -> bool:
        """Whether another step may begin. Call it before every step."""
        now = time.monotonic()
        self.seconds = now - self._started
        if self._first is None:
            self._first = now
            return True
        self.steps += 1
        mean = (now - self._first) / self.steps
        return self.seconds + mean / 2 <= self.budget

    def report(self, folder: Path, *, unit: str, units: int, predict_seconds: float, **more: Any) -> None:
        """Write report.json, which has what the table needs besides the predictions.

        unit, units: what was learned from (crops, patches), and how many of them, with repeats.
        """
        before = (self._first or self._started) - self._started
        document = {
            "train_started": self.wall,
            "train_seconds": self.seconds,
            "before_steps_seconds": before,
            "steps": self.steps,
            "unit_learned": unit,
            "units_per_second": units / (self.seconds - before),
            "predict_seconds": predict_seconds,
            **more,
        }
        (folder / "report.json").write_text(json.dumps(document))
