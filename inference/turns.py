"""A worker's turn at the batches: some seconds of the one that has waited longest, and single images in between.

The rows say what there is to do; a message only calls a worker to take a turn, at whichever batch is due. So batches
go round robin, workers that come late share in, and a message that is lost or comes twice changes nothing.
"""

from __future__ import annotations

import logging
import random
import time

from django.db.models import F
from django.utils import timezone

from inference.batches import batches_with_work, waiting_images
from inference.models import InferenceBatch
from inference.prediction import predict

log = logging.getLogger(__name__)

TURN_SECONDS = 5.0  # long beside the loading of a model, short beside the patience of the next batch's owner
LOOKED_AT = 2000  # waiting images among which a worker chooses, so that many workers at one batch seldom choose alike


def take_turn(pk: int, called_at: str) -> bool:
    """Take a turn for a message of batch `pk`, whose workers were called at `called_at`. True when it is to be sent once more."""
    if not InferenceBatch.objects.filter(pk=pk, called_at=called_at).exists():
        return False  # called anew since then, or the batch was deleted
    batch = batches_with_work().order_by(F("served_at").asc(nulls_first=True), "pk").first()
    if batch is None:
        return False
    InferenceBatch.objects.filter(pk=batch.pk).update(served_at=timezone.now())
    started = time.monotonic()
    count = _work_on(batch, started + TURN_SECONDS)
    log.info("a turn at batch %s: %s images in %.1f s", batch.pk, count, time.monotonic() - started)
    return waiting_images().filter(batch=pk).exists()


def _work_on(batch: InferenceBatch, until: float) -> int:
    """At least one image of the batch, then more until the time is over. Single images that wait go first each time."""
    count = 0
    images = list(waiting_images().filter(batch=batch).values_list("pk", flat=True)[:LOOKED_AT])
    random.shuffle(images)
    for image in images:
        run_single_images(until)
        if count and time.monotonic() > until:
            break
        predict(image)
        count += 1
    return count


def run_single_images(until: float) -> None:
    """Those that wait, the first that came first. Their own messages find nothing left to do."""
    singles = waiting_images().filter(batch=None).order_by("pk").values_list("pk", flat=True)
    while time.monotonic() < until and (single := singles.first()) is not None:
        predict(single)
