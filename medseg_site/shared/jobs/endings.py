"""How a row leaves a worker's hands: it is queued again, or it ends. Each change is written once, with its timeline entry."""

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
    """Tell pages, WebSockets and waiting requests of a row's new status, once the change is committed."""
    kind, pk, words = row.KIND, row.pk, row.WORDS
    transaction.on_commit(lambda: events.publish(kind, pk, {"type": "status", "status": status}))
    if status not in {words.queued, words.working}:
        transaction.on_commit(lambda: events.wake_waiting(kind, pk))
    # A claim changes nothing that a manifest says: of a row at work it says that the row is queued.
    if status != words.working or row.claim_token is None:
        manifests.keep_up(row)


def cancelled_columns(row: Job | type[Job]) -> dict[str, Any]:
    """The columns of a row of this table that ends because a person wished that."""
    now = timezone.now()
    ended = {"finished_at": now, "cancelled_at": now, "claim_token": None}
    if row.WORDS.cancelled:
        return {**ended, "status": row.WORDS.cancelled, "error": None}
    assert row.CANCELLED
    return {**ended, "status": row.WORDS.failed, "error": row.CANCELLED}


def end_unclaimed(rows: models.QuerySet[Any], row: Job, status: str, *, error: str | None = None) -> bool:
    """End a row that no worker holds and that `rows` still selects. False where it does not select the row any more."""
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
    """End all rows of a set that wait in the queue, in one UPDATE. How many; nobody is told of any of them."""
    waiting = rows.filter(status=rows.model.WORDS.queued, claim_token=None)
    return waiting.update(**cancelled_columns(rows.model), cancel_requested=True, **columns)


def end_attempt(row: Job, mine: models.QuerySet[Any], reason: str, last_reason: str) -> str | None:
    """After a worker's death: give the row that `mine` still selects back to the queue, or end it.

    It ends where its user wished that, and after the last attempt, with `last_reason` as the error.
    Returns the new status, or None where the row is somebody else's by now.
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
