"""The reaper queues the rows again whose worker died, and sends the messages that are due.

No other code repeats a row's lost message.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from itertools import islice

from django.conf import settings
from django.db.models import F, Q
from django.utils import timezone

from medseg_site.shared.jobs import messages
from medseg_site.shared.jobs.endings import end_attempt
from medseg_site.shared.jobs.log import add_to_timeline
from medseg_site.shared.jobs.row import Job

log = logging.getLogger(__name__)

STALE_SECONDS = settings.MEDSEG_STALE_SECONDS
LOST_MESSAGE_SECONDS = 2 * STALE_SECONDS
MAX_RESEND_SECONDS = 3600.0
# Messages that one pass over a table sends.
MAX_RESENT = 500
# A time that lies further in the future was written before a clock was set back.
FAR_SECONDS = 10 * STALE_SECONDS


def reap(model: type[Job], waiting: Q | None = None) -> None:
    """End the attempts whose worker died, and send the due messages of a table.

    At most MAX_RESENT messages are sent, first those that were never sent, then those that were sent longest ago.
    waiting: selects the queued rows that have a message of their own; None if all have one.
    """
    _end_lost_attempts(model)
    _send_due_messages(model, waiting or Q())


def _end_lost_attempts(model: type[Job]) -> None:
    words, now = model.WORDS, timezone.now()
    silent_heart = Q(heartbeat_at__lt=now - timedelta(seconds=STALE_SECONDS)) | Q(
        heartbeat_at__gt=now + timedelta(seconds=FAR_SECONDS)
    )
    stale = Q(status=words.working, claim_token__isnull=False) & silent_heart
    for row in model._default_manager.filter(stale):
        # The UPDATE repeats the condition, because the worker may have sent a heartbeat in between.
        mine = model._default_manager.filter(stale, pk=row.pk, claim_token=row.claim_token)
        silence = f"The worker was not heard of for {STALE_SECONDS} s: it died, or its machine did."
        last = (
            f"The worker died {row.attempt} times while working on this, most likely because memory ran out. "
            "Try smaller images, a smaller batch or patch size, or a machine with more memory."
        )
        if end_attempt(row, mine, silence, last) == words.queued:
            log.warning("%s %s: its worker died, attempt %s; queued again", model.KIND, row.pk, row.attempt)


def _send_due_messages(model: type[Job], waiting: Q) -> None:
    now = timezone.now()
    far, silent = now + timedelta(seconds=FAR_SECONDS), now - timedelta(seconds=LOST_MESSAGE_SECONDS)
    is_far = Q(due_at__gt=far) | Q(sent_at__gt=far)
    unheard = Q(sent_at=None, due_at__lte=now) | Q(sent_at__lt=silent) | is_far
    queued = model._default_manager.filter(unheard, waiting, status=model.WORDS.queued, claim_token=None)
    oldest_first = queued.order_by(F("sent_at").asc(nulls_first=True), "pk")
    rows = oldest_first.values_list("pk", "due_at", "sent_at").iterator(chunk_size=500)
    due = (row for row in rows if _is_due(row[1], row[2], far))
    for pk, due_at, sent_at in list(islice(due, MAX_RESENT)):
        mine = queued.filter(pk=pk, sent_at=sent_at)
        # A due time that a wrong clock wrote is replaced, so that the gaps between messages count from now.
        columns = {"sent_at": now, **({"due_at": now} if due_at > far else {})}
        if mine.update(**columns):
            if sent_at is None:
                add_to_timeline(model._default_manager.filter(pk=pk), "sent again")
            messages.call(model.TASK, pk)


def _is_due(due_at: datetime, sent_at: datetime | None, far: datetime) -> bool:
    return sent_at is None or max(due_at, sent_at) > far or is_message_lost(sent_at, since=due_at)


def is_message_lost(sent_at: datetime, since: datetime) -> bool:
    """Whether the last message of a row counts as lost. `since`: the time from which on no worker has taken the row.

    The gaps between messages double, up to MAX_RESEND_SECONDS. A row often waits because no worker is free: its message
    is not lost, and more messages would only fill the broker.
    """
    gap = min(MAX_RESEND_SECONDS, max(LOST_MESSAGE_SECONDS, (sent_at - since).total_seconds()))
    return (timezone.now() - sent_at).total_seconds() > gap
