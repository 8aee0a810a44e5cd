"""The Celery tasks of trainings. They import the workers' code in their bodies, so the web process never loads it."""

from __future__ import annotations

from celery import shared_task

DAY = 24 * 3600


@shared_task(soft_time_limit=15 * DAY, time_limit=15 * DAY + 60)
def train_model(pk: int) -> None:
    from models_app.training import train

    train(pk)


@shared_task(soft_time_limit=60, time_limit=90)
def reap_models() -> None:
    from medseg_site.shared.jobs.reaper import reap
    from models_app.models import SegmentationModel, cancelled_with_weights_due

    reap(SegmentationModel)
    # Every pass of the reaper asks again, until the weights are packaged.
    for pk in cancelled_with_weights_due().values_list("pk", flat=True):
        keep_weights.apply_async(args=(pk,), expires=60)


@shared_task(soft_time_limit=600, time_limit=660)
def keep_weights(pk: int) -> None:
    from models_app.late_weights import keep_weights as keep

    keep(pk)
