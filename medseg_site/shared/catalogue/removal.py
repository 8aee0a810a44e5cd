"""How objects go with their row: the manifest first, while the row can still stay; the rest surely, whatever fails meanwhile.

A manifest that outlived its row would bring it back (`rebuild_catalog`). So it goes first: storage that does not answer then
refuses the whole deletion. But it goes before the transaction: one that waited for storage would keep everybody from writing.
What is left after the commit belongs to nobody; it is removed at once, or as soon as storage answers again.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from django.db import transaction

from medseg_site.shared.base import outages
from medseg_site.shared.catalogue import manifests
from medseg_site.shared.catalogue.chores import REMOVE_REMAINS, RESTORE_MANIFESTS, leave_to_a_worker
from medseg_site.shared.catalogue.declarations import declared
from medseg_site.shared.catalogue.stored_row import StoredRow
from medseg_site.shared.storage import objects as storage

log = logging.getLogger(__name__)

FEW = 10


@contextmanager
def deletion(doomed: dict[type[StoredRow], list[uuid.UUID]]) -> Iterator[None]:
    """The transaction that removes the rows of these uuids. Where it ends with an error, those that live get their manifests again.

    What forbids the deletion is to be looked at before, and once more inside. Not to be used within another transaction.
    """
    try:
        for model, owners in doomed.items():
            collection = declared(model).collection
            storage.delete_objects(storage.object_key(collection, owner, manifests.NAME) for owner in owners)
        with transaction.atomic():
            yield
    except BaseException as error:
        for model, owners in doomed.items():
            _give_back(model, owners, error)
        raise


def _give_back(model: type[StoredRow], owners: list[uuid.UUID], error: BaseException) -> None:
    """At once where they are few and nothing is away; else a worker does it, for the user waits to be told."""
    if len(owners) <= FEW and outages.reason_of(error) is None:
        try:
            manifests.restore(model, owners)
            return
        except Exception as further:
            log.warning("manifests of rows that stay (%s) are not written: %s", model.KIND, further)
    if not leave_to_a_worker(RESTORE_MANIFESTS, model, owners):
        log.warning("nor is that queued; `manage.py verify_storage --repair` writes them")


def remove_on_commit(
    model: type[StoredRow], owners: list[uuid.UUID], work: Callable[[], object], *, later: bool = False
) -> None:
    """After the commit do `work`, which removes the objects of these owners; where it fails, a worker does until it succeeds.

    later: they are so many that a request should not wait for it.
    """
    transaction.on_commit(partial(_remove, model, owners, work, later), robust=True)


def _remove(model: type[StoredRow], owners: list[uuid.UUID], work: Callable[[], object], later: bool) -> None:
    if later and leave_to_a_worker(REMOVE_REMAINS, model, owners, at_once=True):
        return
    try:
        work()
    except Exception as error:
        log.warning("objects of deleted rows (%s) are not removed: %s; a worker will", model.KIND, error)
        if not leave_to_a_worker(REMOVE_REMAINS, model, owners):
            log.warning("nor is that queued; `manage.py collect_garbage --delete` removes them")
