"""Gives rows whose worker died back to the queue, and sends messages again that were lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, TypeVar

from django.db.models import Q
from django.utils import timezone

from medseg_site.shared.jobs.claim import FAR_SECONDS, STALE_SECONDS, after_death
from medseg_site.shared.jobs.log import add_to_timeline
from medseg_site.shared.jobs.row import Job

log = logging.getLogger(__name__)
J = TypeVar("J", bound=Job)

LOST_MESSAGE_SECONDS = 2 * STALE_SECONDS
LONGEST_SECONDS_TO_RESEND = 3600.0
MOST_RESENT = 500  # rows a pass


def reap(model: type[J], enqueue: Callable[[int], Any], waiting: Q | None = None) -> None:
    """Give rows whose worker died back to the queue, fail those that died too often, and send lost messages again (of the
    MOST_RESENT rows at most whose turn it is longest; the others follow in the next passes).

    `waiting`: which queued rows have a message of their own that can be lost; all without it.
    """
    words, now = model.WORDS, timezone.now()
    far = now + timedelta(seconds=FAR_SECONDS)
    silent_heart = Q(heartbeat_at__lt=now - timedelta(seconds=STALE_SECONDS)) | Q(heartbeat_at__gt=far)
    stale = Q(status=words.working, claim_token__isnull=False) & silent_heart
    for row in model._default_manager.filter(stale):
        # The UPDATE repeats the condition: the worker may have come back to life in between.
        mine = model._default_manager.filter(stale, pk=row.pk, claim_token=row.claim_token)
        silence = f"The worker was not heard of for {STALE_SECONDS} s: it died, or its machine did."
        last = (
            f"The worker died {row.attempt} times while working on this, most likely because memory ran out. "
            "Try smaller images, a smaller batch or patch size, or a machine with more memory."
        )
        if after_death(row, mine, silence, last) == words.queued:
            log.warning("%s %s: its worker died, attempt %s; queued again", model.KIND, row.pk, row.attempt)
            enqueue(row.pk)
    silent = now - timedelta(seconds=LOST_MESSAGE_SECONDS)
    unheard = Q(enqueued_at__lt=silent) | Q(enqueued_at__gt=far)
    lost = model._default_manager.filter(unheard, status=words.queued, claim_token=None)
    lost = lost.filter(waiting) if waiting is not None else lost
    rows = lost.order_by("enqueued_at", "pk").values_list("pk", "enqueued_at", "timeline").iterator(chunk_size=500)
    due = (row for row in rows if row[1] > far or is_message_due(row[1], waits_since(row[2])))
    for pk, sent, timeline in list(islice(due, MOST_RESENT)):
        if lost.filter(pk=pk, enqueued_at=sent).update(enqueued_at=now):
            if timeline and timeline[-1]["event"] == "interrupted":  # the pause is over, by whichever clock
                add_to_timeline(model._default_manager.filter(pk=pk), "sent again")
            enqueue(pk)


def is_message_due(sent: datetime, since: datetime | None) -> bool:
    """Whether the message that was sent last has to be taken as lost, for a row that nobody has taken `since` then.

    The gaps double, up to an hour: the message of a row without a worker is not lost, and more of them only fill the broker.
    """
    waited = (sent - since).total_seconds() if since else 0.0
    gap = min(LONGEST_SECONDS_TO_RESEND, max(LOST_MESSAGE_SECONDS, waited))
    return (timezone.now() - sent).total_seconds() > gap


def waits_since(timeline: list[dict[str, Any]]) -> datetime | None:
    """Of a queued row: the last that happened to it is what put it there."""
    return datetime.fromisoformat(timeline[-1]["at"]) if timeline else None
