"""Finds and removes objects that no row owns. Killed uploads, lost claims and interrupted deletions leave such objects."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from medseg_site.shared.catalogue import manifests
from medseg_site.shared.catalogue.declarations import (
    declared,
    named_by_any,
    objects_of,
    owner_of,
    parts_of,
    prefix_of,
    reserving_models,
    stored_models,
    unreserved,
)
from medseg_site.shared.jobs.row import Job
from medseg_site.shared.storage import objects as storage
from medseg_site.shared.storage.objects import ObjectInfo

# An object is stored before its row, so a young object may belong to an upload in progress.
MIN_HOURS = 24.0


@dataclass
class Report:
    count: int = 0
    bytes: int = 0
    too_young: int = 0
    # First parts of keys that this program does not make.
    unknown: list[str] = field(default_factory=list)


def collect(
    *,
    delete: bool = False,
    older_than_hours: float = MIN_HOURS,
    on_object: Callable[[ObjectInfo], None] = lambda item: None,
    on_step: Callable[[str, int], None] = lambda collection, owners: None,
) -> Report:
    """Find the objects that no row owns, and delete them if `delete` is set.

    older_than_hours: younger objects are counted as `too_young` and kept.
    on_object: called for each of the older objects, before it is deleted.
    on_step(collection, owners): called after each chunk of folders with the number of folders that were checked.
    """
    report = Report()
    known = {declared(model).collection for model in stored_models()}
    known |= {declared(model).reserves for model in reserving_models()}
    report.unknown = [name for name in storage.collections() if name not in known]
    oldest_kept = time.time() - older_than_hours * 3600
    walks = [(declared(model).collection, _garbage(model)) for model in stored_models()]
    walks += [(declared(model).reserves, unreserved(model)) for model in reserving_models()]
    for collection, walk in walks:
        for owners, garbage in walk:
            for item in garbage:
                if item.modified > oldest_kept:
                    report.too_young += 1
                    continue
                report.count += 1
                report.bytes += item.size
                on_object(item)
                if delete:
                    storage.delete_object(item.key)
                    storage.remove_emptied_folders(item.key)
            on_step(collection, owners)
    return report


def remove_remains(model: type[Job], owners: list[uuid.UUID]) -> None:
    """Remove the objects below the prefixes of deleted rows, except those that other rows name.

    Versions of a dataset share objects. Nothing is removed below the prefix of a row that exists.
    """
    gone = set(owners) - set(model._default_manager.filter(uuid__in=owners).values_list("uuid", flat=True))
    prefixes = [storage.object_key(declared(model).collection, owner) for owner in sorted(gone)]
    keys = [item.key for prefix in prefixes for item in storage.objects_below(prefix)]
    # The rows are asked about all keys at once, because that can read whole tables.
    storage.delete_objects(set(keys) - named_by_any(keys))


def _garbage(model: type[Job]) -> Iterator[tuple[int, list[ObjectInfo]]]:
    """Find the objects in a table's collection that no row owns.

    A collection has a folder for each row, named by the row's uuid. Yields (number of folders named by a uuid, the
    objects that no row owns) for each chunk of folders.
    """
    for some in storage.owners_in_chunks(declared(model).collection):
        ids = [owner for name in some if (owner := owner_of(name))]
        # The rows are read after the walk, so that a row which was written meanwhile counts.
        rows = {str(row.uuid): row for row in model._default_manager.filter(uuid__in=ids)}
        loose: list[ObjectInfo] = []
        for model_on_its_way in reserving_models():
            coming = model_on_its_way._default_manager.filter(uuid__in=ids).values_list("uuid", flat=True)
            for name in {str(owner) for owner in coming} - set(rows):
                some.pop(name, None)
        for name, objects in some.items():
            loose += _not_owned(rows[name], objects) if name in rows else objects
        # Another row may name an object of this prefix.
        named = named_by_any([item.key for item in loose]) if loose else set()
        # Manifests go first, because `rebuild_catalog` would restore a row from a manifest that is left.
        loose.sort(key=lambda item: not item.key.endswith(f"/{manifests.NAME}"))
        yield len(ids), [item for item in loose if item.key not in named]


def _not_owned(row: Job, objects: list[ObjectInfo]) -> list[ObjectInfo]:
    """Return the objects below a row's prefix that the row does not own.

    An active row names its objects only when it ends. Until then, only its temporary files (.part) are returned.
    """
    if row.is_active:
        return [item for item in objects if item.key.endswith(".part")]
    stored, prefix = declared(type(row)), prefix_of(row)
    folders = list(stored.folders)
    if row.status != row.WORDS.done:
        folders += stored.folders_until_done
    own = {f"{prefix}/{manifests.NAME}", *(key for key, _ in objects_of(row))}
    own |= {f"{prefix}/{manifests.apart_file(name)}" for name, part, _ in parts_of(type(row)) if declared(part).apart}
    below = tuple(f"{prefix}/{folder}/" for folder in folders)
    return [
        item
        for item in objects
        if item.key not in own and (not item.key.startswith(below) or item.key.endswith(".part"))
    ]
