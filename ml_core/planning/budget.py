"""How far a training is, by epochs or by the clock, and the learning rate that belongs to it.

`done` is in epochs (3.5: half of the fourth is over): a batch that had to be lowered on the way changes how many steps an epoch has.
"""

from __future__ import annotations

import math
import time
from typing import Any

from ml_core.planning.plan import Plan


class Clock:
    """Whichever ends first: the epochs asked for, or the deadline (time.monotonic)."""

    def __init__(self, plan: Plan, start: float, deadline: float | None, steps_before: int) -> None:
        self.plan, self.start, self.deadline = plan, start, deadline
        self.first_step, self.first_time = steps_before, time.monotonic()
        self.seconds_a_step = 0.0

    def measure(self, now: float, step: int) -> None:
        self.seconds_a_step = (now - self.first_time) / max(1, step - self.first_step)

    def fraction(self, done: float) -> float:
        by_epochs = done / self.plan.epochs if self.plan.epochs else 0.0
        by_time = 0.0
        if self.deadline is not None:
            by_time = (time.monotonic() - self.start) / max(1e-6, self.deadline - self.start)
        return min(1.0, max(by_epochs, by_time))

    def learning_rate(self, step: int, done: float) -> float:
        """Linear warm-up over the first steps, then half a cosine down to a hundredth (Loshchilov 2017)."""
        warm_up = min(1.0, (step + 1) / max(1, self.plan.warm_up_steps))
        cosine = 0.5 * (1 + math.cos(math.pi * self.fraction(done)))
        return self.plan.learning_rate * warm_up * (0.01 + 0.99 * cosine)

    def is_late(self, now: float) -> bool:
        return self.deadline is not None and now >= self.deadline

    def is_over(self, epoch: int) -> bool:
        return (self.plan.epochs is not None and epoch >= self.plan.epochs) or (
            epoch > 0 and self.is_late(time.monotonic())
        )

    def epochs_in_all(self, done: float, steps: int) -> int:
        """The epochs asked for, or as many as the time left will do at the speed so far."""
        fitting = None
        if self.deadline is not None and self.seconds_a_step:
            fitting = math.ceil(done + (self.deadline - time.monotonic()) / self.seconds_a_step / steps)
        wanted = [number for number in (self.plan.epochs, fitting) if number is not None]
        return max(1, min(wanted)) if wanted else 1

    def progress(self, epoch: int, done: float, steps: int, **numbers: float) -> dict[str, Any]:
        epochs = max(self.epochs_in_all(done, steps), epoch)
        left = max(0.0, epochs - done) * steps * self.seconds_a_step
        return {
            "type": "progress",
            "stage": "training",
            "step": round(done * steps),
            "steps": epochs * steps,
            "epoch": min(epoch + 1, epochs),
            "epochs": epochs,
            "fraction": self.fraction(done),
            "eta_seconds": round(left, 1),
            **numbers,
        }
