"""Celery's side of uploads."""

from __future__ import annotations

from celery import shared_task


@shared_task(soft_time_limit=600, time_limit=660)
def clean_uploads() -> None:
    from uploads.cleaning import clean

    clean()
