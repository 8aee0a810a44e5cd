"""A worker's hold on one row, from the moment it takes the row until the row has ended or is queued again.

The one life of every long piece of work is: queued → working → done | failed | cancelled. The row *is* the job.

- `claim` is a conditional UPDATE that sets a token, so two workers can never both have a row.
- Every later write of the worker carries the token. A worker that lost its claim stops and writes nothing.
- While it works, the worker beats. The reaper gives rows without a heartbeat back to the queue.
- `finish`, `fail`, `cancel`, `end_attempt` and `retry_later` give the row out of the worker's hands.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Generic, TypeVar

from django.db import connection, models, transaction
from django.db.models import F
from django.utils import timezone

from medseg_site.shared.base import events, outages
from medseg_site.shared.jobs.endings import announce, cancelled_columns, end_attempt
from medseg_site.shared.jobs.log import MAX_EVENTS, JobLog, add_to_timeline, timeline_entry, worker_name
from medseg_site.shared.jobs.row import Job

log = logging.getLogger(__name__)
J = TypeVar("J", bound=Job)

BEAT_SECONDS = 1.0
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 5.0, 120.0
# After so many outages the job fails. The pauses between them add up to ten minutes.
MAX_INTERRUPTIONS = 8


class ClaimLostError(Exception):
    """The row was deleted or given to another worker: stop, and write nothing."""


class CancelledError(Exception):
    """The user asked for the job to stop."""


def claim(model: type[J], pk: int) -> Claim[J] | None:
    """Take a queued row. None when another worker has it, it ended, or it waits for the end of an outage."""
    words, token, now = model.WORDS, uuid.uuid4(), timezone.now()
    with transaction.atomic():
        taken = model.objects.takeable().filter(pk=pk).update(
            status=words.working,
            claim_token=token,
            attempt=F("attempt") + 1,
            started_at=now,
            heartbeat_at=now,
            error=None,
        )  # fmt: skip
        if not taken:
            return None
        row: J = model.objects.get(pk=pk)
        add_to_timeline(model.objects.filter(pk=pk), "claimed", worker=worker_name(), attempt=row.attempt)
    announce(row, row.status)
    job = Claim(row)
    job.log.attach()
    job.log.add(f"Attempt {row.attempt}, worker {worker_name()}")
    return job


class Claim(Generic[J]):
    """A worker's hold on one row."""

    def __init__(self, row: J) -> None:
        self.row = row
        self.token = row.claim_token
        self.log = JobLog(row.log)
        self._beaten = time.monotonic()

    @property
    def _row(self) -> models.QuerySet[Any]:
        return type(self.row)._default_manager.filter(pk=self.row.pk)

    @property
    def _mine(self) -> models.QuerySet[Any]:
        return self._row.filter(claim_token=self.token)

    # --- While it works ---------------------------------------------------------------------------------------------
    def beat(self, progress: dict[str, Any] | None = None, *, force: bool = False) -> None:
        """Say that the work goes on. At most one beat a second reaches the database.

        Raises CancelledError when the user wants the job to stop, ClaimLostError when the row is no longer ours.
        """
        if not force and time.monotonic() - self._beaten < BEAT_SECONDS:
            return
        self._beaten = time.monotonic()
        columns: dict[str, Any] = {"heartbeat_at": timezone.now()}
        if progress is not None:
            columns["progress"] = progress
        if self.log.changed:
            columns["log"] = self.log.text()
        self.update(**columns)
        if progress is not None:
            events.publish(self.row.KIND, self.row.pk, {"type": "progress", "progress": progress})
        if self._mine.filter(cancel_requested=True).exists():
            raise CancelledError

    @contextmanager
    def kept_alive(self, seconds: float = 5.0) -> Iterator[None]:
        """Beat from a thread around one long call that cannot beat itself. Its task's time limit bounds it."""
        stop = threading.Event()

        def pulse() -> None:
            while not stop.wait(seconds):
                try:
                    self._mine.update(heartbeat_at=timezone.now())
                except Exception:
                    log.exception("heartbeat of %s %s", self.row.KIND, self.row.pk)
                    # A broken connection would be used again.
                    connection.close()
            connection.close()

        thread = threading.Thread(target=pulse, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def update(self, **columns: Any) -> None:
        """Write columns of the row while it is ours. Raises ClaimLostError."""
        if not self._mine.update(**columns):
            self.log.detach()
            raise ClaimLostError(f"{self.row.KIND} {self.row.pk}")

    def note(self, event: str, detail: str = "") -> None:
        """Tell the reader of the timeline about something."""
        with transaction.atomic():
            self.update(heartbeat_at=timezone.now())
            add_to_timeline(self._mine, event, detail=detail, attempt=self.row.attempt)

    # --- At its end -------------------------------------------------------------------------------------------------
    def finish(self, **columns: Any) -> None:
        """Done. Call it in the transaction that writes the results: if the claim is lost, all of it rolls back."""
        self._end({"status": self.row.WORDS.done, "error": None, **columns})

    def last_words(self) -> dict[str, Any]:
        """Timeline and log as `finish` will write them. The manifest, which is stored before the row is done, needs them."""
        timeline = self._mine.values_list("timeline", flat=True).first() or []
        end = timeline_entry(self.row.WORDS.done, attempt=self.row.attempt)
        return {"timeline": [*timeline, end][-MAX_EVENTS:], "log": self.log.text()}

    def fail(self, reason: str, **columns: Any) -> None:
        """Failed, with the reason. A row that was deleted or given to another worker meanwhile is left as it is."""
        reason = reason.strip() or "The work failed without a reason."
        try:
            self._end({"status": self.row.WORDS.failed, "error": reason, **columns})
        except ClaimLostError as lost:
            log.info("%s is not ours any more; the failure is not recorded: %s", lost, reason)

    def cancel(self, **columns: Any) -> None:
        """Ended, since its user wished that. Raises ClaimLostError."""
        self._end({**cancelled_columns(self.row), "progress": {}, **columns})

    def _end(self, columns: dict[str, Any]) -> None:
        columns = {"finished_at": timezone.now(), "log": self.log.text(), **columns, "claim_token": None}
        with transaction.atomic():
            self.update(**columns)
            if "timeline" not in columns:
                detail = columns["error"] or ""
                add_to_timeline(self._row, columns["status"], detail=detail, attempt=self.row.attempt)
        self.log.detach()
        announce(self.row, columns["status"])

    # --- When it has to be tried again ------------------------------------------------------------------------------
    def end_attempt(self, reason: str) -> None:
        """The process that did the work was killed: queue the row for another attempt, or fail it after the last one."""
        self.log.add(reason, "ERROR")
        self.log.detach()
        self._mine.update(log=self.log.text())
        end_attempt(self.row, self._mine, reason, reason)

    def retry_later(self, reason: str) -> None:
        """Something that the work needs does not answer: queue the row again after a pause. The reaper sends its message then.

        It costs no attempt. Each pause is twice as long as the one before; after MAX_INTERRUPTIONS of them the row fails.
        """
        self.log.add(reason, "WARNING")
        # The database may be what is away.
        outages.patiently(lambda: self._queue_after_pause(reason))

    def _queue_after_pause(self, reason: str) -> None:
        if self._cancelled_where_wished():
            return
        interruptions = self._mine.values_list("interruptions", flat=True).first() or 0
        if interruptions >= MAX_INTERRUPTIONS:
            self.fail(f"{reason} It was tried {interruptions + 1} times. Start it again when that is mended.")
            return
        pause = min(FIRST_PAUSE_SECONDS * 2**interruptions, MAX_PAUSE_SECONDS)
        with transaction.atomic():
            is_queued = self._mine.filter(cancel_requested=False).update(
                status=self.row.WORDS.queued,
                claim_token=None,
                attempt=F("attempt") - 1,
                interruptions=interruptions + 1,
                due_at=timezone.now() + timedelta(seconds=pause),
                sent_at=None,
                log=self.log.text(),
            )
            if is_queued:
                detail = f"{reason} It goes on in {pause:.0f} s."
                add_to_timeline(self._row, "interrupted", detail=detail, attempt=self.row.attempt)
        if not is_queued:
            # The wish came after the look above, or the row is not ours any more.
            self._cancelled_where_wished()
            return
        self.log.detach()
        announce(self.row, self.row.WORDS.queued)

    def _cancelled_where_wished(self) -> bool:
        """End the row where its user wished that. What is away may have kept the worker from noticing."""
        if not self._mine.filter(cancel_requested=True).exists():
            return False
        with suppress(ClaimLostError):
            self.cancel()
        return True
