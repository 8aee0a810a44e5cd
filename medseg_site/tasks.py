"""Celery's side of what belongs to no app: the synthetic example."""

from __future__ import annotations

from typing import Any

from celery import shared_task

SECONDS_BETWEEN_LOOKS = 3


@shared_task(bind=True, max_retries=2000, soft_time_limit=60, time_limit=90)
def advance_demo(self: Any, pk: int) -> None:
    """Looks again until the example has come to its end; never holds the worker while it waits."""
    from medseg_site.demo import advance

    if advance(pk):
        raise self.retry(countdown=SECONDS_BETWEEN_LOOKS)
