"""Workers take turns at the batches: some seconds for the batch that has waited longest, and single images in between.

The rows say what there is to do. A message only calls a worker to take a turn, at whichever batch is due. So batches are
served round robin, a worker that comes late joins in, and a message that is lost or comes twice changes nothing.
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

# Long compared with loading a model, short for the owner of the next batch who waits.
TURN_SECONDS = 5.0
# A worker chooses among so many waiting images, so that two workers at one batch seldom choose the same.
LOOKED_AT = 2000


def take_turn(pk: int, called_at: str) -> bool:
    """Take a turn for a message of batch `pk`, whose workers were called at `called_at`. True when it is to be sent once more."""
    if not InferenceBatch.objects.filter(pk=pk, called_at=called_at).exists():
        # Workers were called anew since then, or the batch was deleted.
        return False
    batch = batches_with_work().order_by(F("served_at").asc(nulls_first=True), "pk").first()
    if batch is None:
        return False
    InferenceBatch.objects.filter(pk=batch.pk).update(served_at=timezone.now())
    started = time.monotonic()
    count = _work_on(batch, started + TURN_SECONDS)
    log.info("a turn at batch %s: %s images in %.1f s", batch.pk, count, time.monotonic() - started)
    return waiting_images().filter(batch=pk).exists()


def _work_on(batch: InferenceBatch, until: float) -> int:
    """Segment one image of the batch, and more until the time is over. Single images that wait go first each time.

    Returns how many.
    """
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
    """Segment the single images that wait, the oldest first. Their own messages then find nothing to do."""
    singles = waiting_images().filter(batch=None).order_by("pk").values_list("pk", flat=True)
    while time.monotonic() < until and (single := singles.first()) is not None:
        predict(single)
