"""Celery's side of what belongs to no app: the synthetic example."""

from __future__ import annotations

import uuid
from typing import Any

from celery import shared_task
from django.apps import apps

SECONDS_BETWEEN_LOOKS = 3
MENDED_EVERY = 300  # seconds, as CELERY_BEAT_SCHEDULE says


@shared_task(bind=True, max_retries=200, soft_time_limit=60, time_limit=90)
def refresh_manifest(self: Any, label: str, pk: int, owner: str) -> None:
    """A manifest that could not be written when its row changed: again and again, for days if storage is down as long."""
    from medseg_site.shared.catalogue import manifests

    try:
        manifests.refresh(apps.get_model(label), uuid.UUID(owner), anew=True)
    except Exception as error:
        raise self.retry(exc=error, countdown=min(15 * 2**self.request.retries, 1800)) from error


_looked_back = False


@shared_task(soft_time_limit=240, time_limit=270)
def mend_recent_manifests() -> None:
    """See verification.mend_recent_manifests: a worker that was just started also looks at what was left before it stopped."""
    from medseg_site.shared.recovery import verify

    global _looked_back
    verify.mend_recent_manifests(since_seconds=3 * MENDED_EVERY if _looked_back else None)
    _looked_back = True


@shared_task(bind=True, max_retries=200, soft_time_limit=1800, time_limit=1860)
def restore_manifests(self: Any, label: str, owners: list[str]) -> None:
    """Of rows that were to be deleted and stay: again and again, for days if storage is down as long."""
    from medseg_site.shared.catalogue import manifests

    try:
        manifests.restore(apps.get_model(label), [uuid.UUID(owner) for owner in owners])
    except Exception as error:
        raise self.retry(exc=error, countdown=min(15 * 2**self.request.retries, 1800)) from error


@shared_task(bind=True, max_retries=200, soft_time_limit=1800, time_limit=1860)
def remove_remains(self: Any, label: str, owners: list[str]) -> None:
    """Objects of rows that were deleted: again and again, for days if storage is down as long."""
    from medseg_site.shared.recovery import sweep

    try:
        sweep.remove_remains(apps.get_model(label), [uuid.UUID(owner) for owner in owners])
    except Exception as error:
        raise self.retry(exc=error, countdown=min(15 * 2**self.request.retries, 1800)) from error


@shared_task(bind=True, max_retries=2000, soft_time_limit=60, time_limit=90)
def advance_demo(self: Any, pk: int) -> None:
    """Looks again until the example has come to its end; never holds the worker while it waits."""
    from medseg_site.demo import advance

    if advance(pk):
        raise self.retry(countdown=SECONDS_BETWEEN_LOOKS)
