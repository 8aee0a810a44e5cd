"""The one life of every long piece of work: queued → working → done | failed | cancelled.

A row *is* the job. A worker owns it from `claim` (a conditional UPDATE, so two workers can never both have it) until
`finish`, `fail`, `cancel` or `release`, each of which writes only while the claim still holds. Meanwhile it beats; rows
whose heart stopped are given back to the queue or failed by `reap`. No other module writes `status`.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Generic, Self, TypeVar

from django.conf import settings
from django.db import connection, models, transaction
from django.db.models import F, Q
from django.utils import timezone

from medseg_site.shared import manifests
from medseg_site.shared import progress as events
from medseg_site.shared.errors import WrongStateError

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
STALE_SECONDS = 60
LOST_MESSAGE_SECONDS = 120
MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class JobWords:
    """What one table calls the states. Queued and working may share a word; the claim tells them apart."""

    queued: str
    working: str
    done: str
    failed: str
    cancelled: str | None

    def all(self) -> list[str]:
        words = [self.queued, self.working, self.done, self.failed, self.cancelled]
        return list(dict.fromkeys(word for word in words if word))


class ClaimLostError(Exception):
    """The row was deleted or given to another worker: stop, and write nothing."""


class CancelledError(Exception):
    """The user asked for the job to stop."""


class JobQuerySet(models.QuerySet[Any]):
    def visible_to(self, user: Any) -> Self:
        """The rows that this user may see. Every page and every API query starts here."""
        if settings.MEDSEG_SINGLE_USER or user.is_superuser:
            return self
        return self.filter(created_by=user.pk)


class Job(models.Model):
    """Columns of every row that is also a job. Subclasses set WORDS and KIND."""

    WORDS: ClassVar[JobWords]
    KIND: ClassVar[str]

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        editable=False,
        on_delete=models.SET_NULL,
        related_name="+",
    )
    status = models.CharField(max_length=16, db_index=True, editable=False)
    error = models.TextField(null=True, blank=True, editable=False)  # noqa: DJ001 (null: there is no error)
    progress = models.JSONField(default=dict, blank=True, editable=False)
    attempt = models.PositiveIntegerField(default=0, editable=False)
    cancel_requested = models.BooleanField(default=False, editable=False)
    claim_token = models.UUIDField(null=True, blank=True, editable=False)
    enqueued_at = models.DateTimeField(default=timezone.now, editable=False)
    started_at = models.DateTimeField(null=True, blank=True, editable=False)
    heartbeat_at = models.DateTimeField(null=True, blank=True, editable=False)
    finished_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = JobQuerySet.as_manager()

    class Meta:
        abstract = True

    @property
    def is_active(self) -> bool:
        return self.status in {self.WORDS.queued, self.WORDS.working}

    @property
    def is_working(self) -> bool:
        return self.is_active and self.claim_token is not None


def job_constraints(table: str, words: JobWords, done_needs: Q) -> list[models.BaseConstraint]:
    """CHECK constraints that make a row which contradicts itself impossible."""
    has_error = Q(error__isnull=False) & ~Q(error="")
    return [
        models.CheckConstraint(condition=Q(status__in=words.all()), name=f"{table}_known_status"),
        models.CheckConstraint(condition=~Q(status=words.failed) | has_error, name=f"{table}_failed_says_why"),
        models.CheckConstraint(condition=~Q(status=words.done) | done_needs, name=f"{table}_done_has_result"),
        models.CheckConstraint(
            condition=Q(claim_token__isnull=True) | Q(status=words.working),
            name=f"{table}_claimed_is_working",
        ),
    ]


J = TypeVar("J", bound=Job)


class Claim(Generic[J]):
    """A worker's hold on one row."""

    def __init__(self, row: J) -> None:
        self.row = row
        self.token = row.claim_token
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
        if not self._mine.update(**fields):
            raise ClaimLostError(f"{self.row.KIND} {self.row.pk}")
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
            raise ClaimLostError(f"{self.row.KIND} {self.row.pk}")

    def finish(self, **fields: Any) -> None:
        """Done. Call it in the transaction that writes the results: if the claim is lost, all of it rolls back."""
        self._end(self.row.WORDS.done, error=None, **fields)

    def fail(self, reason: str, **fields: Any) -> None:
        """Failed, with the reason. A row that was deleted or given to another worker meanwhile is left as it is."""
        try:
            self._end(self.row.WORDS.failed, error=reason.strip() or "The work failed without a reason.", **fields)
        except ClaimLostError as lost:
            log.info("%s is not ours any more; the failure is not recorded: %s", lost, reason)

    def cancel(self, **fields: Any) -> None:
        assert self.row.WORDS.cancelled
        self._end(self.row.WORDS.cancelled, error=None, **fields)

    def release(self) -> None:
        """Give the row back unfinished, without counting the attempt (the worker is going down in good order)."""
        self._mine.update(status=self.row.WORDS.queued, claim_token=None, attempt=F("attempt") - 1)

    def _end(self, status: str, **fields: Any) -> None:
        fields = {"status": status, "claim_token": None, "finished_at": timezone.now(), **fields}
        self.update(**fields)
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
    mine = model._default_manager.filter(pk=pk, status=words.queued, claim_token=None).update(
        status=words.working,
        claim_token=token,
        attempt=F("attempt") + 1,
        started_at=now,
        heartbeat_at=now,
        error=None,
    )
    if not mine:
        return None
    row: J = model._default_manager.get(pk=pk)  # type: ignore[assignment]  # the manager of an abstract model has no type
    announce(row, row.status)
    return Claim(row)


def request_cancel(row: Job) -> None:
    """Cancel a queued row at once; ask the worker of a working one to stop. Raises WrongStateError when it has ended."""
    words, manager = row.WORDS, type(row)._default_manager
    assert words.cancelled
    now = timezone.now()
    queued = manager.filter(pk=row.pk, status=words.queued, claim_token=None)
    if queued.update(status=words.cancelled, finished_at=now, cancel_requested=True):
        announce(row, words.cancelled)
    elif not manager.filter(pk=row.pk, status=words.working).update(cancel_requested=True):
        row.refresh_from_db(fields=["status"])
        raise WrongStateError(f"It is {row.status} already, so there is nothing to cancel.")
    row.refresh_from_db()


def requeue(row: Job, **fields: Any) -> None:
    """Put an ended row (failed or cancelled) back into the queue. The caller enqueues the task on commit."""
    words = row.WORDS
    ended = [word for word in (words.failed, words.cancelled) if word]
    fields = {"status": words.queued, "error": None, "cancel_requested": False, "finished_at": None, **fields}
    mine = type(row)._default_manager.filter(pk=row.pk, status__in=ended)
    if not mine.update(enqueued_at=timezone.now(), attempt=0, **fields):
        row.refresh_from_db(fields=["status"])
        raise WrongStateError(f"It is {row.status}. Only {' or '.join(ended)} ones can be started again.")
    announce(row, words.queued)
    row.refresh_from_db()


def reap(model: type[J], enqueue: Callable[[int], Any]) -> None:
    """Give rows whose worker died back to the queue, fail those that died too often, and send lost messages again."""
    words, now = model.WORDS, timezone.now()
    stale = {
        "status": words.working,
        "claim_token__isnull": False,
        "heartbeat_at__lt": now - timedelta(seconds=STALE_SECONDS),
    }
    for row in model._default_manager.filter(**stale):
        # Each UPDATE repeats the condition: the worker may have come back to life in between.
        mine = model._default_manager.filter(pk=row.pk, claim_token=row.claim_token, **stale)
        if row.cancel_requested and words.cancelled:
            if mine.update(status=words.cancelled, claim_token=None, finished_at=now):
                announce(row, words.cancelled)
        elif row.attempt < MAX_ATTEMPTS:
            if mine.update(status=words.queued, claim_token=None, enqueued_at=now):
                log.warning("%s %s: its worker died, attempt %s; queued again", model.KIND, row.pk, row.attempt)
                announce(row, words.queued)
                enqueue(row.pk)
        else:
            reason = (
                f"The worker died {row.attempt} times while working on this, most likely because memory ran out. "
                "Try smaller images, a smaller batch or patch size, or a machine with more memory."
            )
            if mine.update(status=words.failed, claim_token=None, finished_at=now, error=reason):
                announce(row, words.failed)
    silent = now - timedelta(seconds=LOST_MESSAGE_SECONDS)
    lost = model._default_manager.filter(status=words.queued, claim_token=None, enqueued_at__lt=silent)
    for pk in lost.values_list("pk", flat=True):
        if lost.filter(pk=pk).update(enqueued_at=now):
            enqueue(pk)


def enqueue_on_commit(task: Any, pk: int) -> None:
    """Send the row's Celery message once the row is committed. A broker that is down is no error: the reaper sends it again."""

    def send() -> None:
        try:
            task.apply_async(args=[pk], retry=False)
        except Exception as error:
            log.warning("%s for %s is not sent (%s); the reaper will", task.name, pk, error)

    transaction.on_commit(send)
