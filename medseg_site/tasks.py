"""The Celery tasks that belong to no app: chores of storage, and the synthetic example."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from celery import shared_task
from django.apps import apps

SECONDS_BETWEEN_LOOKS = 3
# In seconds. CELERY_BEAT_SCHEDULE has the same number.
MENDED_EVERY = 300


def chore(work: Callable[[str, list[str]], None]) -> Any:
    """Make a task that is tried again until it succeeds (see shared/catalogue/chores.py).

    It is tried after 15 s, 30 s and so on, and then every half hour for some days.
    """
    return shared_task(
        autoretry_for=(Exception,),
        retry_backoff=15,
        retry_backoff_max=1800,
        retry_jitter=False,
        max_retries=200,
        soft_time_limit=1800,
        time_limit=1860,
    )(work)


@chore
def restore_manifests(label: str, owners: list[str]) -> None:
    """Write the manifests of these rows again, as far as the rows still exist."""
    from medseg_site.shared.catalogue import manifests

    manifests.restore(apps.get_model(label), [uuid.UUID(owner) for owner in owners])


@chore
def remove_remains(label: str, owners: list[str]) -> None:
    """Remove the objects of rows that were deleted."""
    from medseg_site.shared.recovery import sweep

    sweep.remove_remains(apps.get_model(label), [uuid.UUID(owner) for owner in owners])


_looked_back = False


@shared_task(soft_time_limit=240, time_limit=270)
def mend_recent_manifests() -> None:
    """Call verify.mend_recent_manifests. A worker's first pass looks at all rows, as it may have been away for long."""
    from medseg_site.shared.recovery import verify

    global _looked_back
    verify.mend_recent_manifests(since_seconds=3 * MENDED_EVERY if _looked_back else None)
    _looked_back = True


@shared_task(bind=True, max_retries=2000, soft_time_limit=60, time_limit=90)
def advance_demo(self: Any, pk: int) -> None:
    """Take the next step of the example, and come back later until it is complete. The worker is free in between."""
    from medseg_site.demo import advance

    if advance(pk):
        raise self.retry(countdown=SECONDS_BETWEEN_LOOKS)
