"""The columns that every job row has, and the CHECK constraints that keep them consistent."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from medseg_site.shared.jobs.log import first_timeline


@dataclass(frozen=True)
class JobWords:
    """The words of one table for the states of its rows.

    `queued` and `working` may be the same word: the claim tells these states apart. `cancelled` is None in a table that
    has no word for it.
    """

    queued: str
    working: str
    done: str
    failed: str
    cancelled: str | None

    def all(self) -> list[str]:
        words = [self.queued, self.working, self.done, self.failed, self.cancelled]
        return list(dict.fromkeys(word for word in words if word))


class JobQuerySet(models.QuerySet[Any]):
    def takeable(self) -> Self:
        """Return the queued rows that a worker may claim now.

        The reaper sends the message of a row that waits for the end of an outage when its pause is over. So a row whose
        message was sent may be claimed, whatever the clock of the worker says.
        """
        words = self.model.WORDS
        may_begin = Q(sent_at__isnull=False) | Q(due_at__lte=timezone.now())
        return self.filter(may_begin, status=words.queued, claim_token=None)


class Job(models.Model):
    """A row that is also a job.

    A subclass sets WORDS, KIND and TASK. It sets CANCELLED too if its WORDS have no word for cancelled. It has an index
    that begins with `project` and ends with the columns by which its lists are ordered.
    """

    WORDS: ClassVar[JobWords]
    KIND: ClassVar[str]
    # The dotted path of the Celery task that takes the row's number.
    TASK: ClassVar[str]
    # The error of a row that was cancelled, in a table that calls such a row failed.
    CANCELLED: ClassVar[str | None] = None

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    # The project that the row belongs to. Not CASCADE, because only a service deletes a row together with its objects.
    project = models.ForeignKey(
        "accounts.Project", editable=False, db_index=False, on_delete=models.PROTECT, related_name="%(class)s_rows"
    )
    # The user who made the row.
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        editable=False,
        on_delete=models.SET_NULL,
        related_name="+",
    )
    status = models.CharField(max_length=16, db_index=True, editable=False)
    # Null: there is no error.
    error = models.TextField(null=True, blank=True, editable=False)  # noqa: DJ001 (null says that there is none)
    attempt = models.PositiveIntegerField(default=0, editable=False)
    # How often an outage (storage, database, broker) ended an attempt since the row was queued by a person.
    interruptions = models.PositiveIntegerField(default=0, editable=False)
    claim_token = models.UUIDField(null=True, blank=True, editable=False)
    cancel_requested = models.BooleanField(default=False, editable=False)

    # When the work may begin: at once, or after the pause that follows an outage.
    due_at = models.DateTimeField(default=timezone.now, editable=False)
    # When the row's message was sent last. Null: it is to be sent as soon as the row is due.
    sent_at = models.DateTimeField(null=True, default=timezone.now, editable=False)
    started_at = models.DateTimeField(null=True, blank=True, editable=False)
    heartbeat_at = models.DateTimeField(null=True, blank=True, editable=False)
    finished_at = models.DateTimeField(null=True, blank=True, editable=False)
    # When the row ended because a person asked for that. A dataset, which has no word for cancelled, is `error` then.
    cancelled_at = models.DateTimeField(null=True, blank=True, editable=False)

    # For people; no code reads them.
    progress = models.JSONField(default=dict, blank=True, editable=False)
    timeline = models.JSONField(default=first_timeline, blank=True, editable=False)  # log.timeline_entry, oldest first
    log = models.TextField(blank=True, editable=False)  # the last lines of all attempts

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
    """Return the CHECK constraints of a job table. They refuse contradictory rows, such as a failed job without error.

    done_needs: the condition that every row that is done must meet.
    """
    has_error = Q(error__isnull=False) & ~Q(error="")
    active = list(dict.fromkeys([words.queued, words.working]))
    ended_as_cancelled = words.cancelled or words.failed
    return [
        models.CheckConstraint(condition=Q(status__in=words.all()), name=f"{table}_known_status"),
        models.CheckConstraint(condition=~Q(status=words.failed) | has_error, name=f"{table}_failed_says_why"),
        models.CheckConstraint(condition=~Q(status=words.done) | done_needs, name=f"{table}_done_has_result"),
        models.CheckConstraint(
            condition=Q(claim_token__isnull=True) | Q(status=words.working),
            name=f"{table}_claimed_is_working",
        ),
        models.CheckConstraint(
            condition=Q(status__in=active, finished_at__isnull=True)
            | ~Q(status__in=active) & Q(finished_at__isnull=False),
            name=f"{table}_ended_says_when",
        ),
        models.CheckConstraint(
            condition=Q(cancelled_at__isnull=True) | Q(status=ended_as_cancelled),
            name=f"{table}_cancelled_is_ended",
        ),
    ]
