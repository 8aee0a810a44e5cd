"""Stops a job or starts it again when a person asks for that."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.utils import timezone

from medseg_site.shared.base.errors import WrongStateError
from medseg_site.shared.jobs.endings import announce, cancelled_columns
from medseg_site.shared.jobs.log import add_to_timeline
from medseg_site.shared.jobs.messages import send_on_commit
from medseg_site.shared.jobs.row import Job


def request_cancel(row: Job) -> None:
    """Cancel a queued row at once, or ask the worker of a working row to stop.

    Raises WrongStateError when the row has ended.
    """
    words = row.WORDS
    columns = cancelled_columns(row)
    mine = type(row)._default_manager.filter(pk=row.pk)
    with transaction.atomic():
        if mine.filter(status=words.queued, claim_token=None).update(**columns, cancel_requested=True):
            add_to_timeline(mine, columns["status"], detail=columns["error"])
            announce(row, columns["status"])
        elif mine.filter(status=words.working, cancel_requested=False).update(cancel_requested=True):
            add_to_timeline(mine, "cancel requested")
        elif not mine.filter(status=words.working).exists():
            row.refresh_from_db(fields=["status"])
            raise WrongStateError(f"It is {row.status} already, so there is nothing to cancel.")
    row.refresh_from_db()


def why_not_requeueable(row: Job) -> str | None:
    """Return the reason why a row cannot be started again now; None if it can."""
    ended = _ended_without_result(row)
    return None if row.status in ended else f"It is {row.status}. Only {' or '.join(ended)} ones can be started again."


def _ended_without_result(row: Job) -> list[str]:
    return [word for word in (row.WORDS.failed, row.WORDS.cancelled) if word]


def requeue(row: Job, **columns: Any) -> None:
    """Queue a failed or cancelled row again, write `columns` to it, and send its message on commit.

    Raises WrongStateError when the row is neither failed nor cancelled.
    """
    words, now = row.WORDS, timezone.now()
    fresh = {
        "status": words.queued,
        "error": None,
        "attempt": 0,
        "interruptions": 0,
        "cancel_requested": False,
        "cancelled_at": None,
        "finished_at": None,
        "due_at": now,
        "sent_at": now,
    }
    mine = type(row)._default_manager.filter(pk=row.pk)
    with transaction.atomic():
        if not mine.filter(status__in=_ended_without_result(row)).update(**{**fresh, **columns}):
            row.refresh_from_db(fields=["status"])
            raise WrongStateError(why_not_requeueable(row) or "It changed a moment ago. Try again.")
        add_to_timeline(mine, "queued", detail="Started again by hand.")
        announce(row, words.queued)
        send_on_commit(row)
    row.refresh_from_db()
