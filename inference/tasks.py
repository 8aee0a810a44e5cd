"""Celery's side of inferences."""

from __future__ import annotations

from celery import shared_task

HOUR = 3600


@shared_task(soft_time_limit=HOUR, time_limit=HOUR + 60)
def run_inference(pk: int) -> None:
    from inference.prediction import predict

    predict(pk)


@shared_task(soft_time_limit=2 * HOUR, time_limit=2 * HOUR + 60)
def expand_batch(pk: int) -> None:
    from inference.batches import expand

    if expand(pk):
        # Should this worker die before, the reaper sends them.
        send_turns(pk)


@shared_task(soft_time_limit=HOUR, time_limit=HOUR + 60)
def note_cancelled(pk: int) -> None:
    from inference.batches import note_cancelled_images

    note_cancelled_images(pk)


@shared_task(soft_time_limit=HOUR + 60, time_limit=HOUR + 120)
def work_on_batches(pk: int, called_at: str) -> None:
    from inference.turns import take_turn

    if take_turn(pk, called_at):
        # To the end of the queue.
        work_on_batches.delay(pk, called_at)


def send_turns(pk: int) -> None:
    """Call as many workers to a batch as can be of use to it."""
    from inference.batches import call_workers

    called_at, count = call_workers(pk)
    for _ in range(count):
        work_on_batches.delay(pk, called_at)


@shared_task(soft_time_limit=60, time_limit=90)
def reap_inferences() -> None:
    from django.db.models import Q

    from inference.batches import close_finished_batches, forgotten_batches
    from inference.models import InferenceBatch, InferenceResult
    from medseg_site.shared.jobs.reaper import reap

    # Batches first: however many single images wait, one pass has time for all of them.
    reap(InferenceBatch)
    for pk in close_finished_batches():
        note_cancelled.delay(pk)
    for pk in forgotten_batches():
        send_turns(pk)
    # The images of a batch that is at work have no messages of their own.
    reap(InferenceResult, waiting=Q(batch=None) | Q(batch__finished_at__isnull=False))
