"""Status changes that workers, the reaper and users' requests share: a row ends, or is queued again."""

from __future__ import annotations

from typing import Any

from django.db import models, transaction
from django.utils import timezone

from medseg_site.shared.base import events
from medseg_site.shared.catalogue import manifests
from medseg_site.shared.jobs.log import add_to_timeline
from medseg_site.shared.jobs.messages import send_on_commit
from medseg_site.shared.jobs.row import Job

MAX_ATTEMPTS = 3


def announce(row: Job, status: str) -> None:
    """Tell pages and waiting requests of a row's new status, and write its manifest, once the change is committed.

    Waiting requests are told only when the row has ended.
    """
    kind, pk, words = row.KIND, row.pk, row.WORDS
    transaction.on_commit(lambda: events.publish(kind, pk, {"type": "status", "status": status}))
    if status not in {words.queued, words.working}:
        transaction.on_commit(lambda: events.wake_waiting(kind, pk))
    # A claim does not change the manifest, which calls a row queued while a worker has it.
    if status != words.working or row.claim_token is None:
        manifests.keep_up(row)


def cancelled_columns(row: Job | type[Job]) -> dict[str, Any]:
    """Return the columns of a row that a person has cancelled.

    A table without a word for cancelled uses its word for failed, with the error CANCELLED.
    """
    now = timezone.now()
    ended = {"finished_at": now, "cancelled_at": now, "claim_token": None}
    if row.WORDS.cancelled:
        return {**ended, "status": row.WORDS.cancelled, "error": None}
    assert row.CANCELLED
    return {**ended, "status": row.WORDS.failed, "error": row.CANCELLED}


def end_unclaimed(rows: models.QuerySet[Any], row: Job, status: str, *, error: str | None = None) -> bool:
    """End a row that no worker has and that `rows` still selects. Returns False if there is no such row any more."""
    columns: dict[str, Any] = {"status": status, "error": error, "finished_at": timezone.now()}
    if status == row.WORDS.cancelled:
        columns = cancelled_columns(row)
    with transaction.atomic():
        if not rows.filter(pk=row.pk, claim_token=None).update(**columns):
            return False
        add_to_timeline(type(row)._default_manager.filter(pk=row.pk), status, detail=error or "")
    row.refresh_from_db()
    announce(row, status)
    return True


def cancel_all_waiting(rows: models.QuerySet[Any], **columns: Any) -> int:
    """Cancel all queued rows of a set in one UPDATE, which also writes `columns`. Returns the number of rows.

    The caller must update their timelines and manifests. Pages and waiting requests are not told.
    """
    waiting = rows.filter(status=rows.model.WORDS.queued, claim_token=None)
    return waiting.update(**cancelled_columns(rows.model), cancel_requested=True, **columns)


def end_attempt(row: Job, mine: models.QuerySet[Any], reason: str, last_reason: str) -> str | None:
    """Queue a row again after its worker died, or end it. `reason` goes into the timeline.

    The row ends as cancelled if its user asked for that. After the last attempt it ends as failed, and `last_reason` is
    the error. Returns the new status, or None if `mine` does not select the row any more.
    """
    words, now = row.WORDS, timezone.now()
    rows = type(row)._default_manager.filter(pk=row.pk)
    columns: dict[str, Any]
    if rows.filter(cancel_requested=True).exists():
        columns = {**cancelled_columns(row), "progress": {}}
        event = columns["status"]
    elif row.attempt < MAX_ATTEMPTS:
        columns = {"status": words.queued, "claim_token": None, "due_at": now, "sent_at": now}
        event = "worker lost"
    else:
        columns = {"status": words.failed, "claim_token": None, "finished_at": now, "error": last_reason}
        event = words.failed
    with transaction.atomic():
        if not mine.update(**columns):
            return None
        add_to_timeline(rows, event, detail=reason, attempt=row.attempt)
        if columns["status"] == words.queued:
            send_on_commit(row)
    status: str = columns["status"]
    announce(row, status)
    return status
