"""The Celery tasks of accounts."""

from __future__ import annotations

from celery import shared_task


@shared_task(soft_time_limit=60, time_limit=90)
def forget_request_keys() -> None:
    from accounts.request_keys import forget_old

    forget_old()
