"""Celery's side of inferences."""

from __future__ import annotations

from celery import shared_task

HOUR = 3600


@shared_task(soft_time_limit=HOUR, time_limit=HOUR + 60)
def run_inference(pk: int) -> None:
    from inference.prediction import run

    if (pause := run(pk)) is not None:  # should this message be lost, the reaper sends it
        run_inference.apply_async(args=(pk,), countdown=pause)


@shared_task(soft_time_limit=2 * HOUR, time_limit=2 * HOUR + 60)
def expand_batch(pk: int) -> None:
    from inference.batches import expand

    for inference in expand(pk):  # should this die half-way, the reaper sends the rest
        run_inference.delay(inference)


@shared_task(soft_time_limit=60, time_limit=90)
def reap_inferences() -> None:
    from inference.batches import close_finished_batches
    from inference.models import InferenceBatch, InferenceResult
    from medseg_site.shared.jobs import reap

    reap(InferenceResult, run_inference.delay)
    reap(InferenceBatch, expand_batch.delay)
    close_finished_batches()
