"""The Celery tasks of datasets. They import the workers' code in their bodies, so the web process never loads it."""

from __future__ import annotations

from celery import shared_task

HOUR = 3600


@shared_task(soft_time_limit=8 * HOUR, time_limit=8 * HOUR + 60)
def check_dataset(pk: int) -> None:
    from datasets.check import check

    check(pk)


@shared_task(soft_time_limit=60, time_limit=90)
def reap_datasets() -> None:
    from datasets.models import Dataset
    from medseg_site.shared.jobs.reaper import reap

    reap(Dataset)
