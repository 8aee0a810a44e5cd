"""Shows the progress of work: as a bar in a terminal or notebook, as a plain line every few seconds in a log."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from typing import Any

from ml_core.dataset.findings import Issue
from ml_core.planning.budget import Stage
from ml_core.training.events import EpochEnded, Event, Progress

SECONDS_BETWEEN_LINES = 5.0
# Warnings of one kind that are shown.
MAX_WARNINGS = 20
BAR = "{desc:<11}{percentage:3.0f}%|{bar:24}| {elapsed}{postfix}"


class ProgressBar:
    """Shows one bar for each stage of some work, on standard error; use it as a context manager.

    shown: whether anything is shown at all.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self.shown = shown
        self.drawn = sys.stderr.isatty() or "ipykernel" in sys.modules
        self._bar: Any = None
        self._stage = ""
        self._train_loss = self._val_dice = math.nan
        self._line_at = -math.inf
        self._warnings = Counter[str]()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def note(self, text: str) -> None:
        """Print a sentence above the bar, where it stays."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif self.shown:
            print(text, file=sys.stderr, flush=True)

    def issue(self, issue: Issue) -> None:
        """Print an issue of a dataset: every error, but only MAX_WARNINGS warnings of one kind."""
        self._warnings[issue.code] += issue.severity == "warning"
        if issue.severity == "error" or self._warnings[issue.code] <= MAX_WARNINGS:
            self.note(str(issue))
        elif self._warnings[issue.code] == MAX_WARNINGS + 1:
            self.note("Further warnings of this kind are not shown.")

    def show(self, stage: str, share: float, text: str = "") -> None:
        """Show the progress of a stage. share: its finished part, 0 to 1. text: what to show beside the bar."""
        if not self.shown:
            return
        if stage != self._stage:
            self._close()
            self._stage = stage
            if self.drawn:
                from tqdm.auto import tqdm

                self._bar = tqdm(total=1.0, desc=stage, bar_format=BAR, file=sys.stderr)
        share = min(1.0, max(0.0, share))
        if self._bar is not None:
            self._bar.n = share
            self._bar.set_postfix_str(text)
            return
        now = time.monotonic()
        if share >= 1 or now - self._line_at > SECONDS_BETWEEN_LINES:
            self._line_at = now
            print(f"{stage}: {share:.0%}{', ' + text if text else ''}", file=sys.stderr, flush=True)

    def count(self, stage: str, done: int, total: int) -> None:
        """Show the progress of a stage that works through `total` items."""
        self.show(stage, done / total if total else 1.0, f"{done} of {total}")

    def on_event(self, event: Event) -> None:
        """Show the progress of a training, with the latest loss and Dice. Other events are ignored."""
        match event:
            case EpochEnded(point):
                self._train_loss, self._val_dice = point.train_loss, point.val_dice
            case Progress(stage=Stage.TRAINING):
                self._train_loss = self._train_loss if event.train_loss is None else event.train_loss
                self._val_dice = self._val_dice if event.val_dice is None else event.val_dice
                self._show_training(event)
            case Progress():
                self.count(event.stage, event.done or 0, event.total or 0)

    def _show_training(self, progress: Progress) -> None:
        parts = [f"epoch {progress.epoch} of {progress.epochs}"] if progress.epochs else []
        for label, value in (("loss", self._train_loss), ("validation Dice", self._val_dice)):
            if math.isfinite(value):
                parts.append(f"{label} {value:.3f}")
        if progress.eta_seconds is not None:
            parts.append(f"{_clock(progress.eta_seconds)} left")
        self.show(progress.stage, progress.fraction, ", ".join(parts))

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage, self._line_at = None, "", -math.inf


def _clock(seconds: float) -> str:
    minutes, full_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{full_seconds:02}" if hours else f"{minutes}:{full_seconds:02}"
