"""How a row is deleted together with its objects.

The manifest goes first, since `rebuild_catalog` would restore a row whose manifest is left. Storage that does not answer thus
refuses the whole deletion. It goes before the transaction begins: a transaction that waits for storage would keep everybody
else from writing. After the commit the other objects belong to nobody. They are removed at once, or by a worker as soon as
storage answers.
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
    """The transaction that deletes the rows of these uuids. If it fails, the rows that stay get their manifests back.

    The caller checks before it, and again inside, whether the rows may be deleted. Do not use it inside a transaction.
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
    """Write the manifests back: at once where they are few and storage answers, else by a worker, since a user waits."""
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
    """After the commit call `work`, which removes the objects of these owners. If it fails, a worker tries until it succeeds.

    later: there are so many that a request must not wait for it.
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
