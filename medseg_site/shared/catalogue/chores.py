"""Work on storage that no row stands for and that could not be done at once: a worker does it, again and again until it succeeds.

The tasks are in medseg_site/tasks.py; Celery itself sends them again, for days if storage is down as long.
"""

from __future__ import annotations

import logging
import uuid
from typing import Any

from celery import current_app

log = logging.getLogger(__name__)

RESTORE_MANIFESTS = "medseg_site.tasks.restore_manifests"
REMOVE_REMAINS = "medseg_site.tasks.remove_remains"
# A worker that other short work waits for is done with so many in seconds.
OWNERS_A_MESSAGE = 100
SECONDS_UNTIL_NEXT_TRY = 15


def leave_to_a_worker(task: str, model: Any, owners: list[uuid.UUID], *, at_once: bool = False) -> bool:
    """False where the broker does not answer either."""
    countdown = 0 if at_once else SECONDS_UNTIL_NEXT_TRY
    try:
        for start in range(0, len(owners), OWNERS_A_MESSAGE):
            chunk = [str(owner) for owner in owners[start : start + OWNERS_A_MESSAGE]]
            current_app.send_task(task, args=[model._meta.label, chunk], countdown=countdown, retry=False)
    except Exception as error:
        log.warning("%s is not queued: %s", task, error)
        return False
    return True
