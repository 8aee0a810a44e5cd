"""A worker's claim on one row. It lasts until the row has ended or is queued again.

Every job row has the same life: queued → working → done | failed | cancelled. The row *is* the job.

- `claim` is a conditional UPDATE that sets a token, so two workers can never both have a row.
- Every later write of the worker checks the token. A worker that lost its claim stops and writes nothing.
- A worker sends heartbeats while it works. The reaper ends the attempt of a row whose heartbeats have stopped.
- `finish`, `fail`, `cancel`, `end_attempt` and `retry_later` end the claim.
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
# The job fails at the outage that follows so many pauses. These add up to almost nine minutes.
MAX_INTERRUPTIONS = 8


class ClaimLostError(Exception):
    """The row was deleted, or it is not this worker's any more. The worker must stop and write nothing."""


class CancelledError(Exception):
    """The user asked to stop the job."""


def claim(model: type[J], pk: int) -> Claim[J] | None:
    """Take a queued row and return the claim on it.

    Returns None when another worker has the row, when it has ended or was deleted, or when it waits for the end of an
    outage.
    """
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
    """A worker's claim on one row."""

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
        """Record that the work goes on, and its progress. Without `force`, at most one beat a second is recorded.

        Raises CancelledError when the user asked to stop the job, and ClaimLostError when the claim is lost.
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
        """Send heartbeats from a thread, every `seconds`, during one long call that cannot call `beat` itself.

        If the call hangs, the time limit of its Celery task ends it.
        """
        stop = threading.Event()

        def pulse() -> None:
            while not stop.wait(seconds):
                try:
                    self._mine.update(heartbeat_at=timezone.now())
                except Exception:
                    log.exception("heartbeat of %s %s", self.row.KIND, self.row.pk)
                    # Without this, the next heartbeat would use a broken connection again.
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
        """Write columns of the row. Raises ClaimLostError when the claim is lost."""
        if not self._mine.update(**columns):
            self.log.detach()
            raise ClaimLostError(f"{self.row.KIND} {self.row.pk}")

    def note(self, event: str, detail: str = "") -> None:
        """Add an event to the row's timeline. Raises ClaimLostError when the claim is lost."""
        with transaction.atomic():
            self.update(heartbeat_at=timezone.now())
            add_to_timeline(self._mine, event, detail=detail, attempt=self.row.attempt)

    # --- At its end -------------------------------------------------------------------------------------------------
    def finish(self, **columns: Any) -> None:
        """End the row as done. Raises ClaimLostError when the claim is lost.

        Call it in the transaction that writes the results, so that the error rolls them back.
        """
        self._end({"status": self.row.WORDS.done, "error": None, **columns})

    def last_words(self) -> dict[str, Any]:
        """Return the timeline and the log that the row will have after `finish`, as columns to pass to it.

        The row's manifest needs them earlier, because it is stored before `finish` is called.
        """
        timeline = self._mine.values_list("timeline", flat=True).first() or []
        end = timeline_entry(self.row.WORDS.done, attempt=self.row.attempt)
        return {"timeline": [*timeline, end][-MAX_EVENTS:], "log": self.log.text()}

    def fail(self, reason: str, **columns: Any) -> None:
        """End the row as failed, with the reason. If the claim is lost, the row is left as it is."""
        reason = reason.strip() or "The work failed without a reason."
        try:
            self._end({"status": self.row.WORDS.failed, "error": reason, **columns})
        except ClaimLostError as lost:
            log.info("%s is not ours any more; the failure is not recorded: %s", lost, reason)

    def cancel(self, **columns: Any) -> None:
        """End the row because its user asked for that. Raises ClaimLostError when the claim is lost."""
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
        """Queue the row for another attempt, because the process that did the work was killed.

        After the last attempt the row ends as failed. If its user asked to stop the job, it ends as cancelled.
        """
        self.log.add(reason, "ERROR")
        self.log.detach()
        self._mine.update(log=self.log.text())
        end_attempt(self.row, self._mine, reason, reason)

    def retry_later(self, reason: str) -> None:
        """Queue the row again because of an outage. The reaper sends its message after a pause.

        The interrupted attempt does not count. Each pause is twice as long as the one before, up to MAX_PAUSE_SECONDS.
        The row fails at the outage that follows MAX_INTERRUPTIONS pauses.
        """
        self.log.add(reason, "WARNING")
        # The outage may be one of the database.
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
            # The user asked to stop the job after the check above, or the claim is lost.
            self._cancelled_where_wished()
            return
        self.log.detach()
        announce(self.row, self.row.WORDS.queued)

    def _cancelled_where_wished(self) -> bool:
        """End the row if its user asked for that. Returns whether the user did.

        The outage may have kept the worker from noticing it.
        """
        if not self._mine.filter(cancel_requested=True).exists():
            return False
        with suppress(ClaimLostError):
            self.cancel()
        return True
