"""The one life of every long piece of work: queued → working → done | failed | cancelled.

A row *is* the job. A worker owns it from `claim` (a conditional UPDATE, so two workers can never both have it) until
`finish`, `fail`, `cancel`, `end_attempt` or `retry_later`, each of which writes only while the claim still holds. Meanwhile it beats; rows
whose heart stopped are given back to the queue or failed by `reap`. No other module writes `status`.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from django.conf import settings
from django.db import connection, models, transaction
from django.db.models import F
from django.utils import timezone

from medseg_site.shared.base import events as events
from medseg_site.shared.base import outages
from medseg_site.shared.base.errors import WrongStateError
from medseg_site.shared.catalogue import manifests
from medseg_site.shared.jobs.log import MOST_EVENTS, JobLog, add_to_timeline, timeline_entry, worker_name
from medseg_site.shared.jobs.row import Job

log = logging.getLogger(__name__)
J = TypeVar("J", bound=Job)

BEAT_SECONDS = 1.0
STALE_SECONDS = settings.MEDSEG_STALE_SECONDS
CLOCKS_DIFFER_SECONDS = 4.0
FAR_SECONDS = 10 * STALE_SECONDS  # in the future: such a time was written before a clock was put back
MAX_ATTEMPTS = 3
MAX_INTERRUPTIONS = 8  # by what does not answer for a while; the pauses between them add up to ten minutes


class ClaimLostError(Exception):
    """The row was deleted or given to another worker: stop, and write nothing."""


class CancelledError(Exception):
    """The user asked for the job to stop."""


class Claim(Generic[J]):
    """A worker's hold on one row."""

    def __init__(self, row: J) -> None:
        self.row = row
        self.token = row.claim_token
        self.log = JobLog(row.log)
        self._beaten = time.monotonic()

    @property
    def _mine(self) -> models.QuerySet[Any]:
        return type(self.row)._default_manager.filter(pk=self.row.pk, claim_token=self.token)

    def beat(self, progress: dict[str, Any] | None = None, *, force: bool = False) -> None:
        """Say that the work goes on (at most once a second reaches the database).

        Raises CancelledError when the user wants the job to stop, ClaimLostError when the row is no longer ours.
        """
        if not force and time.monotonic() - self._beaten < BEAT_SECONDS:
            return
        self._beaten = time.monotonic()
        fields: dict[str, Any] = {"heartbeat_at": timezone.now()}
        if progress is not None:
            fields["progress"] = progress
        if self.log.changed:
            fields["log"] = self.log.text()
        self.update(**fields)
        if progress is not None:
            events.publish(self.row.KIND, self.row.pk, {"type": "progress", "progress": progress})
        if self._mine.filter(cancel_requested=True).exists():
            raise CancelledError

    @contextmanager
    def kept_alive(self, seconds: float = 5.0) -> Iterator[None]:
        """Beat from a thread around one long call that cannot beat itself (its task's time limit bounds it)."""
        stop = threading.Event()

        def pulse() -> None:
            while not stop.wait(seconds):
                try:
                    self._mine.update(heartbeat_at=timezone.now())
                except Exception:
                    log.exception("heartbeat of %s %s", self.row.KIND, self.row.pk)
                    connection.close()  # a broken one would be used again
            connection.close()

        thread = threading.Thread(target=pulse, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def update(self, **fields: Any) -> None:
        """Write columns of the row while it is ours. Raises ClaimLostError."""
        if not self._mine.update(**fields):
            self.log.detach()
            raise ClaimLostError(f"{self.row.KIND} {self.row.pk}")

    def note(self, event: str, detail: str = "") -> None:
        """Something that the reader of the timeline should know."""
        with transaction.atomic():
            self.update(heartbeat_at=timezone.now())
            add_to_timeline(self._mine, event, detail=detail, attempt=self.row.attempt)

    def finish(self, **fields: Any) -> None:
        """Done. Call it in the transaction that writes the results: if the claim is lost, all of it rolls back."""
        self._end(self.row.WORDS.done, error=None, **fields)

    def last_words(self) -> dict[str, Any]:
        """Timeline and log as `finish` is to write them: for the manifest, which is stored before the row is done."""
        timeline = self._mine.values_list("timeline", flat=True).first() or []
        end = timeline_entry(self.row.WORDS.done, attempt=self.row.attempt)
        return {"timeline": [*timeline, end][-MOST_EVENTS:], "log": self.log.text()}

    def fail(self, reason: str, **fields: Any) -> None:
        """Failed, with the reason. A row that was deleted or given to another worker meanwhile is left as it is."""
        try:
            self._end(self.row.WORDS.failed, error=reason.strip() or "The work failed without a reason.", **fields)
        except ClaimLostError as lost:
            log.info("%s is not ours any more; the failure is not recorded: %s", lost, reason)

    def cancel(self, **fields: Any) -> None:
        status, error = _cancelled(self.row)
        self._end(status, error=error, **fields)

    def end_attempt(self, reason: str) -> bool:
        """What did the work was killed: queue the row for another attempt, or fail it after the last one. True: send its message."""
        self.log.add(reason, "ERROR")
        self.log.detach()
        self._mine.update(log=self.log.text())
        return after_death(self.row, self._mine, reason, reason) == self.row.WORDS.queued

    def retry_later(self, reason: str) -> float | None:
        """Something that the work needs does not answer: queue the row again. Seconds until its message; None: failed for good.

        It costs no attempt, and each pause is twice as long as the one before.
        """
        self.log.add(reason, "WARNING")
        return outages.patiently(lambda: self._queue_after_pause(reason))  # it may be the database that is away

    def _queue_after_pause(self, reason: str) -> float | None:
        if self._ended_where_wished():
            return None
        rows = type(self.row)._default_manager.filter(pk=self.row.pk)
        timeline = rows.values_list("timeline", flat=True).first() or []
        events_ = [entry["event"] for entry in timeline]
        since = len(events_) - events_[::-1].index("queued") if "queued" in events_ else 0  # started again by hand
        times = events_[since:].count("interrupted")
        if times >= MAX_INTERRUPTIONS:
            self.fail(f"{reason} It was tried {times + 1} times. Start it again when that is mended.")
            return None
        pause: float = min(5.0 * 2**times, 120.0)
        queued = {
            "status": self.row.WORDS.queued,
            "claim_token": None,
            "attempt": F("attempt") - 1,
            "log": self.log.text(),
        }
        with transaction.atomic():
            # The reaper counts from when the message is due.
            unwished = self._mine.filter(cancel_requested=False)
            is_queued = unwished.update(**queued, enqueued_at=timezone.now() + timedelta(seconds=pause))
            if is_queued:
                detail = f"{reason} It goes on in {pause:.0f} s."
                add_to_timeline(rows, "interrupted", detail=detail, attempt=self.row.attempt)
        if not is_queued:
            self._ended_where_wished()  # a wish that came since the look above
            return None
        self.log.detach()
        announce(self.row, self.row.WORDS.queued)
        return pause

    def _ended_where_wished(self) -> bool:
        """End the row as cancelled where its user wished that: what is away may have kept the worker from noticing."""
        if not self._mine.filter(cancel_requested=True).exists():
            return False
        with suppress(ClaimLostError):
            self.cancel(progress={})
        return True

    def _end(self, status: str, **fields: Any) -> None:
        fields = {"status": status, "finished_at": timezone.now(), "log": self.log.text(), **fields}
        rows = type(self.row)._default_manager.filter(pk=self.row.pk)
        with transaction.atomic():
            self.update(claim_token=None, **fields)
            if "timeline" not in fields:
                add_to_timeline(rows, status, detail=fields.get("error") or "", attempt=self.row.attempt)
        self.log.detach()
        announce(self.row, status)


def announce(row: Job, status: str) -> None:
    """Tell pages, WebSockets and waiting requests, once the change is committed, that a row has a new status."""
    kind, pk = row.KIND, row.pk
    transaction.on_commit(lambda: events.publish(kind, pk, {"type": "status", "status": status}))
    if status not in {row.WORDS.queued, row.WORDS.working}:
        transaction.on_commit(lambda: events.wake_waiting(kind, pk))
    if (
        status != row.WORDS.working or row.claim_token is None
    ):  # not at a claim: a manifest does not tell who is at work
        manifests.keep_up(row)


def claim(model: type[J], pk: int) -> Claim[J] | None:
    """Take a queued row. None when it is not queued any more: somebody else has it, or it ended."""
    words, token, now = model.WORDS, uuid.uuid4(), timezone.now()
    queued = model._default_manager.filter(pk=pk, status=words.queued, claim_token=None)
    with transaction.atomic():
        since, timeline = queued.values_list("enqueued_at", "timeline").first() or (None, [])
        if since is None or _is_paused(since, timeline):
            return None
        mine = queued.filter(enqueued_at=since).update(
            status=words.working,
            claim_token=token,
            attempt=F("attempt") + 1,
            started_at=now,
            heartbeat_at=now,
            error=None,
        )
        if not mine:
            return None
        row: J = model._default_manager.get(pk=pk)  # type: ignore[assignment]  # an abstract model's manager has no type
        rows = model._default_manager.filter(pk=pk)
        add_to_timeline(rows, "claimed", worker=worker_name(), attempt=row.attempt)
    announce(row, row.status)
    claimed = Claim(row)
    claimed.log.attach()
    claimed.log.add(f"Attempt {row.attempt}, worker {worker_name()}")
    return claimed


def _is_paused(since: datetime, timeline: list[dict[str, Any]]) -> bool:
    """Whether a second message came too early. Only a pause lies in the future, or the clock of who queued the row is ahead."""
    paused = bool(timeline) and timeline[-1]["event"] == "interrupted"
    return paused and since > timezone.now() + timedelta(seconds=CLOCKS_DIFFER_SECONDS)


def request_cancel(row: Job) -> None:
    """Cancel a queued row at once; ask the worker of a working one to stop. Raises WrongStateError when it has ended."""
    words, manager = row.WORDS, type(row)._default_manager
    status, error = _cancelled(row)
    now = timezone.now()
    mine = manager.filter(pk=row.pk)
    with transaction.atomic():
        queued = mine.filter(status=words.queued, claim_token=None)
        if queued.update(status=status, error=error, finished_at=now, cancel_requested=True):
            add_to_timeline(mine, status, detail=error)
            announce(row, status)
        elif mine.filter(status=words.working, cancel_requested=False).update(cancel_requested=True):
            add_to_timeline(mine, "cancel requested")
        elif not mine.filter(status=words.working).exists():
            row.refresh_from_db(fields=["status"])
            raise WrongStateError(f"It is {row.status} already, so there is nothing to cancel.")
    row.refresh_from_db()


def _cancelled(row: Job) -> tuple[str, str | None]:
    """(status, error) of a row that ends because its user wished that."""
    if row.WORDS.cancelled:
        return row.WORDS.cancelled, None
    assert row.CANCELLED
    return row.WORDS.failed, row.CANCELLED


def why_not_requeueable(row: Job) -> str | None:
    """Why a row cannot be started again now; None where it can."""
    ended = [word for word in (row.WORDS.failed, row.WORDS.cancelled) if word]
    return None if row.status in ended else f"It is {row.status}. Only {' or '.join(ended)} ones can be started again."


def requeue(row: Job, **fields: Any) -> None:
    """Put an ended row (failed or cancelled) back into the queue. The caller enqueues the task on commit."""
    words = row.WORDS
    ended = [word for word in (words.failed, words.cancelled) if word]
    fields = {"status": words.queued, "error": None, "cancel_requested": False, "finished_at": None, **fields}
    mine = type(row)._default_manager.filter(pk=row.pk)
    with transaction.atomic():
        if not mine.filter(status__in=ended).update(enqueued_at=timezone.now(), attempt=0, **fields):
            row.refresh_from_db(fields=["status"])
            raise WrongStateError(why_not_requeueable(row) or "It changed a moment ago. Try again.")
        add_to_timeline(mine, "queued", detail="Started again by hand.")
        announce(row, words.queued)
    row.refresh_from_db()


def after_death(row: Job, mine: models.QuerySet[Any], reason: str, last_reason: str) -> str | None:
    """Give the row that `mine` still selects back to the queue; after the last attempt fail it; end it where that was wished.

    The new status, None when the row is somebody else's by now. `last_reason` is the error after the last attempt.
    """
    words, now = row.WORDS, timezone.now()
    fields: dict[str, Any] = {"claim_token": None, "finished_at": now}
    wished = type(row)._default_manager.filter(pk=row.pk, cancel_requested=True).exists()
    if wished:
        status, error = _cancelled(row)
        event, fields = status, {**fields, "error": error, "progress": {}}
    elif row.attempt < MAX_ATTEMPTS:
        status, event, fields = words.queued, "worker lost", {"claim_token": None, "enqueued_at": now}
    else:
        status, event, fields = words.failed, words.failed, {**fields, "error": last_reason}
    rows = type(row)._default_manager.filter(pk=row.pk)
    with transaction.atomic():
        if not mine.update(status=status, **fields):
            return None
        add_to_timeline(rows, event, detail=reason, attempt=row.attempt)
    announce(row, status)
    return status


def enqueue_on_commit(task: Any, pk: int) -> None:
    """Send the row's Celery message once the row is committed. A broker that is down is no error: the reaper sends it again."""

    def send() -> None:
        try:
            task.apply_async(args=[pk], retry=False)
        except Exception as error:
            log.warning("%s for %s is not sent (%s); the reaper will", task.name, pk, error)

    transaction.on_commit(send)
