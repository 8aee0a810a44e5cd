"""The process that trains: it is started, its events are read, it is asked to stop, and it is always ended."""

from __future__ import annotations

import errno
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from django.conf import settings
from django.db import transaction

from medseg_site.shared.base import events as events
from medseg_site.shared.base import outages
from medseg_site.shared.jobs.claim import CancelledError, Claim
from medseg_site.shared.jobs.run import AttemptKilledError
from ml_core.errors import DISK_FULL
from ml_core.memory import tuned_environment
from ml_core.training.events import (
    CurvePoint,
    Done,
    EpochEnded,
    EstimateMade,
    Event,
    Failed,
    Note,
    PlanMade,
    Progress,
    Started,
    Stopping,
    read_event,
    without_type,
)
from models_app.models import Epoch, SegmentationModel

# A process that was asked to stop may take so long to answer, beside a few training steps. A longer silence means that
# it hangs in a batch.
SECONDS_TO_NOTICE = 10
# After its answer it may take so long to package its best weights.
SECONDS_TO_PACKAGE = 120
# A process that sends no event for so long hangs.
SECONDS_OF_SILENCE = 3600


class TrainingFailedError(Exception):
    """A training ended without a model. The text says why, and what to do."""


class TrainingKilledError(AttemptKilledError):
    """The process was killed. Another attempt may go on from its checkpoint.

    `out_of_memory` says that the system killed it, because it took too much memory.
    """

    def __init__(self, text: str, *, out_of_memory: bool = False) -> None:
        super().__init__(text)
        self.out_of_memory = out_of_memory


class TrainingProcess:
    """`python -m ml_core train` in a process group of its own. `on_epoch` is called after every epoch."""

    def __init__(
        self,
        job: Claim[SegmentationModel],
        job_file: Path,
        on_epoch: Callable[[], None] = lambda: None,
    ) -> None:
        self.job, self.on_epoch = job, on_epoch
        self.progress: Progress | None = None
        self.warnings: list[str] = []
        self.seconds_a_step = 0.0
        self.stop_by: float | None = None
        self.last_words: deque[str] = deque(maxlen=20)
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.killed_for_memory = times_out_of_memory()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ml_core", "train", "--job", str(job_file)],
            cwd=settings.BASE_DIR,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=tuned_environment(),
            start_new_session=True,
        )

    def result(self) -> Done | None:
        """Wait for the end and return the last event. None when the process hung after a request to stop.

        The process has ended when this returns or raises. Raises TrainingFailedError, TrainingKilledError,
        ClaimLostError when the row is no longer ours, and OSError (ENOSPC) when the disk is full.
        """
        readers = [threading.Thread(target=read, daemon=True) for read in (self._read_events, self._read_errors)]
        for reader in readers:
            reader.start()
        try:
            return self._follow()
        finally:
            self._kill()
            for reader in readers:
                reader.join(timeout=10)

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _read_events(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.last_words.append(line.rstrip())
            self.job.log.add(line.rstrip(), "STDERR")

    def _follow(self) -> Done | None:
        heard = time.monotonic()
        while True:
            try:
                line = self.lines.get(timeout=0.5)
                heard = time.monotonic()
            except queue.Empty:
                line = ""
            if line is None:
                self._explain_death()
            if line and (end := self._handle_patiently(line)):
                return end
            try:
                progress = without_type(self.progress) if self.progress else None
                outages.patiently(partial(self.job.beat, progress))
            except CancelledError:
                if self.stop_by is None:
                    self._ask_to_stop()
            now = time.monotonic()
            if self.stop_by and now > max(self.stop_by, heard + SECONDS_TO_NOTICE):
                return None
            if now - heard > SECONDS_OF_SILENCE:
                raise TrainingKilledError("The training process hung: it sent nothing for an hour, so it was ended.")

    def _handle_patiently(self, line: str) -> Done | None:
        """Handle one line, and wait for a database that is away: half a minute without it must not end a training."""
        event = read_event(line)
        return outages.patiently(lambda: self._handle(event))

    def _ask_to_stop(self) -> None:
        assert self.process.stdin
        self.stop_by = time.monotonic() + SECONDS_TO_NOTICE + 3 * self.seconds_a_step
        # The pipe is broken when the process has just ended by itself.
        with suppress(BrokenPipeError):
            self.process.stdin.write("stop\n")
            self.process.stdin.flush()

    def _handle(self, event: Event) -> Done | None:
        """Act on one event. Returns the event if it is the last one."""
        match event:
            case Progress():
                self.progress = event
            case PlanMade():
                self._keep_plan(event)
            case EstimateMade(estimate):
                self.seconds_a_step = estimate.seconds_a_step
                self.job.update(estimate=estimate.to_json())
                memory = estimate.peak_memory / 2**30
                self.job.log.add(f"Measured: {estimate.images_per_second} images/s, {memory:.2f} GB of memory")
            case Started():
                self._align_curve(event)
                self.job.log.add(f"Training starts after epoch {event.epoch}")
            case EpochEnded(point):
                self._keep_epoch(point)
            case Note(text):
                self.warnings.append(text)
                self.job.update(warnings=self.warnings)
                self.job.note("note", text)
                self.job.log.add(text, "WARNING")
            case Stopping():
                self.stop_by = time.monotonic() + SECONDS_TO_PACKAGE
            case Failed(code=code) if code == DISK_FULL:
                # A full disk is an outage: the training goes on when there is room.
                raise OSError(errno.ENOSPC, event.reason)
            case Failed():
                raise TrainingFailedError(f"{event.reason} {event.cure}".strip())
            case Done():
                return event
        return None

    def _keep_plan(self, event: PlanMade) -> None:
        plan, row = event.plan, self.job.row
        row.plan = plan.to_json()
        self.job.update(hyperparameters=plan.hyperparameters(), plan=row.plan, split=event.split.to_json())
        network = f"{plan.configuration} {plan.architecture}"
        self.job.log.add(f"Plan: {network}, batch {plan.batch_size}, patch {plan.patch_size}")

    def _align_curve(self, started: Started) -> None:
        """Make the curve that of the checkpoint: delete the epochs after it, and add those missing before it."""
        row = self.job.row
        with transaction.atomic():
            Epoch.objects.filter(model=row, epoch__gt=started.epoch).delete()
            stored_epochs = set(Epoch.objects.filter(model=row).values_list("epoch", flat=True))
            missing = [point for point in started.curve if point.epoch not in stored_epochs]
            Epoch.objects.bulk_create(Epoch(model=row, **point.to_json()) for point in missing)

    def _keep_epoch(self, point: CurvePoint) -> None:
        row, columns = self.job.row, point.to_json()
        events.publish(row.KIND, row.pk, {"type": "epoch", **columns})
        losses = {"train_loss": point.train_loss, "val_loss": point.val_loss, "val_dice": point.val_dice}
        numbers = [f"{name} {value:.4f}" for name, value in losses.items() if math.isfinite(value)]
        self.job.log.add(f"Epoch {point.epoch}: {', '.join(numbers)}, {point.seconds:.1f} s")
        Epoch.objects.update_or_create(model=row, epoch=point.epoch, defaults=columns)
        self.on_epoch()

    def _explain_death(self) -> None:
        """Raise TrainingKilledError after a signal, and else TrainingFailedError with the last line on stderr."""
        code = self.process.wait()
        if code == -signal.SIGKILL and times_out_of_memory() > self.killed_for_memory:
            reason = "The system ended the training process (-9), since memory ran out."
            raise TrainingKilledError(f"{reason} Choose a smaller batch, patch or encoder.", out_of_memory=True)
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else "an unknown signal"
            cure = "Resume it; if it happens again, find out who or what ends processes on this machine."
            raise TrainingKilledError(f"The training process was killed ({name}, {code}). {cure}")
        words = [line for line in self.last_words if line.strip()]
        what = words[-1][:300] if words else f"exit code {code}"
        raise TrainingFailedError(
            f"The training process ended unexpectedly ({what}). Resume it; if it fails again, see its log."
        )


def times_out_of_memory() -> int:
    """How many processes the system has killed for lack of memory since it started (Linux; 0 on other systems)."""
    try:
        counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
        return int(counters.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0
