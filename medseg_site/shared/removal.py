"""How objects go with their row: the manifest first, while the row can still stay; the rest surely, whatever fails meanwhile.

A manifest that outlived its row would bring it back (`rebuild_catalog`). So it goes inside the transaction, before the row: storage that
does not answer then refuses the whole deletion. What is left after the commit belongs to nobody; it is removed at once, or as soon
as storage answers again.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from celery import current_app
from django.db import models, transaction

from medseg_site.shared import manifests, storage
from medseg_site.shared.catalog import declared

if TYPE_CHECKING:
    from medseg_site.shared.job_rows import Job

log = logging.getLogger(__name__)

OWNERS_A_MESSAGE = 500


def forget_manifests(model: type[Job], owners: Iterable[uuid.UUID]) -> None:
    """Call it inside the transaction that removes the rows of these uuids, before it does."""
    storage.delete_objects(storage.object_key(declared(model).collection, owner, manifests.NAME) for owner in owners)


def remove_on_commit(
    model: type[Job], owners: list[uuid.UUID], work: Callable[[], object], *, later: bool = False
) -> None:
    """After the commit do `work`, which removes the objects of these owners; where it fails, a worker does until it succeeds.

    later: they are so many that a request should not wait for it.
    """
    transaction.on_commit(partial(_remove, model, owners, work, later), robust=True)


def _remove(model: type[Job], owners: list[uuid.UUID], work: Callable[[], object], later: bool) -> None:
    if later and _leave_to_a_worker(model, owners, countdown=0):
        return
    try:
        work()
    except Exception as error:
        log.warning("objects of deleted rows (%s) are not removed: %s; a worker will", model.KIND, error)
        if not _leave_to_a_worker(model, owners, countdown=15):
            log.warning("nor is that queued; `manage.py collect_garbage --delete` removes them")


def _leave_to_a_worker(model: type[models.Model], owners: list[uuid.UUID], countdown: int) -> bool:
    try:
        for start in range(0, len(owners), OWNERS_A_MESSAGE):
            some = [str(owner) for owner in owners[start : start + OWNERS_A_MESSAGE]]
            arguments = [model._meta.label, some]
            current_app.send_task("medseg_site.tasks.remove_remains", args=arguments, countdown=countdown, retry=False)
    except Exception as error:
        log.warning("the broker does not answer: %s", error)
        return False
    return True
