"""The columns of every row that is also a job, and the CHECK constraints that hold them together."""

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
    """What one table calls the states. Queued and working may share a word; the claim tells them apart."""

    queued: str
    working: str
    done: str
    failed: str
    cancelled: str | None

    def all(self) -> list[str]:
        words = [self.queued, self.working, self.done, self.failed, self.cancelled]
        return list(dict.fromkeys(word for word in words if word))


class OwnedQuerySet(models.QuerySet[Any]):
    def visible_to(self, user: Any) -> Self:
        """The rows that this user may see. Every page and every API query starts here."""
        if settings.MEDSEG_SINGLE_USER or user.is_superuser:
            return self
        return self.filter(created_by=user.pk)


class JobQuerySet(OwnedQuerySet):
    def visible_to(self, user: Any) -> Self:
        """The same without the log: up to half a megabyte that only its own address shows."""
        return super().visible_to(user).defer("log")


class Job(models.Model):
    """Columns of every row that is also a job. Subclasses set WORDS and KIND, and CANCELLED where WORDS has no word for that."""

    WORDS: ClassVar[JobWords]
    KIND: ClassVar[str]
    CANCELLED: ClassVar[str | None] = None  # the error of a row that was cancelled and is therefore failed

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
    timeline = models.JSONField(
        default=first_timeline, blank=True, editable=False
    )  # job_log.timeline_entry, oldest first
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
    """CHECK constraints that make a row which contradicts itself impossible."""
    has_error = Q(error__isnull=False) & ~Q(error="")
    active = list(dict.fromkeys([words.queued, words.working]))
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
    ]
