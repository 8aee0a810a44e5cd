"""The Celery tasks of uploads. They import the workers' code in their bodies, so the web process never loads it."""

from __future__ import annotations

from celery import shared_task


@shared_task(soft_time_limit=600, time_limit=660)
def clean_uploads() -> None:
    from uploads.cleaning import clean

    clean()
