"""What storage holds of each table. The apps declare it on their models as `STORED`.

Manifests, `rebuild_catalog`, `verify_storage` and `collect_garbage` know no app. They read these declarations.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from django.apps import apps
from django.db import models

from medseg_site.shared.catalogue.stored_row import StoredRow
from medseg_site.shared.storage import objects as storage

MANY_KEYS = (
    5_000  # each 500 of fewer are one reading of every table by the database; more are looked up in one reading by us
)


@dataclass(frozen=True)
class Stored:
    """Declared as `STORED` on a model: on those whose rows own a prefix, and on their parts that name objects too.

    collection: the first part of its keys (empty for parts).
    objects: column of an object's key → column of its SHA-256, or None where no checksum is kept.
    parts: reverse relations whose rows belong to the row and go into its manifest.
    apart: of a part: its rows may be a million, so they lie in a file of their own beside the manifest.
    reserves: of rows on their way to become another's: the collection that holds what has arrived; also the prefix with the
    row's own uuid in every other collection is theirs already.
    taken_from: column → the column whose value it has where a manifest is older than it.
    told_in_full: of rows without a prefix of their own: the manifest of each row that points to one holds all of its columns,
    so that it can be made again.
    folders: folders of objects that belong to the row without being named one by one; `folders_until_done` only until it is done.
    """

    collection: str = ""
    objects: dict[str, str | None] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    apart: bool = False
    folders: tuple[str, ...] = ()
    folders_until_done: tuple[str, ...] = ()
    reserves: str = ""
    taken_from: dict[str, str] = field(default_factory=dict)
    told_in_full: bool = False


def declared(model: Any) -> Stored:
    stored: Stored = getattr(model, "STORED", Stored())
    return stored


def stored_models() -> list[Any]:
    """Every model whose rows own a prefix. A model comes before those that point to it."""
    wanted: list[Any] = [model for model in apps.get_models() if declared(model).collection]
    ordered: list[Any] = []
    while wanted:
        free = [model for model in wanted if not set(_pointed_to(model)) & (set(wanted) - {model})]
        assert free, f"These tables point to one another in a circle: {wanted}"
        ordered += free
        wanted = [model for model in wanted if model not in free]
    return ordered


def reserving_models() -> list[Any]:
    return [model for model in apps.get_models() if declared(model).reserves]


def models_told_in_full() -> list[Any]:
    return [model for model in apps.get_models() if declared(model).told_in_full]


def unreserved(model: Any) -> Iterator[tuple[int, list[storage.ObjectInfo]]]:
    """(number of owners looked at, objects of those without a row) of a reserving model's collection, chunk by chunk.

    No manifest names what is on its way, so a lost database leaves all of it without a row.
    """
    for some in storage.owners_in_chunks(declared(model).reserves):
        ids = [owner for name in some if (owner := owner_of(name))]
        # The rows are read after the walk, so that a row which was written meanwhile counts.
        rows = {str(owner) for owner in model._default_manager.filter(uuid__in=ids).values_list("uuid", flat=True)}
        yield len(some), [item for name, objects in some.items() if name not in rows for item in objects]


def _pointed_to(model: type[models.Model]) -> Iterator[Any]:
    for column in model._meta.concrete_fields:
        if column.is_relation:
            yield column.related_model


def parts_of(model: Any) -> list[tuple[str, type[models.Model], str]]:
    """(name, the part's model, its column that points to the row) of each part."""
    found = []
    for name in declared(model).parts:
        relation: Any = model._meta.get_field(name)
        found.append((name, relation.related_model, relation.field.name))
    return found


def prefix_of(row: StoredRow) -> str:
    return storage.object_key(declared(type(row)).collection, row.uuid)


def objects_of(row: StoredRow) -> Iterator[tuple[str, str]]:
    """(key, SHA-256 or "") of every object that the row and its parts name. Neighbouring parts that share an object name it once."""
    yield from _named(row)
    for name, part, _ in parts_of(type(row)):
        if declared(part).objects:
            before: list[tuple[str, str]] = []
            for item in getattr(row, name).iterator(chunk_size=2000):
                named = list(_named(item))
                yield from (one for one in named if one not in before)
                before = named


def _named(row: Any) -> Iterator[tuple[str, str]]:
    for key_column, checksum_column in declared(type(row)).objects.items():
        if key := getattr(row, key_column):
            yield key, getattr(row, checksum_column) if checksum_column else ""


def owner_of(name: str) -> uuid.UUID | None:
    """The uuid in a folder's name; None for a folder that this program did not make."""
    try:
        owner = uuid.UUID(name)
    except ValueError:
        return None
    return owner if str(owner) == name else None


def named_by_any(keys: list[str]) -> set[str]:
    """The keys among `keys` that any row of any table names."""
    named: set[str] = set()
    wanted = set(keys)
    for model in apps.get_models():
        for column in declared(model).objects:
            rows = model._default_manager.values_list(column, flat=True).order_by()
            if len(keys) > MANY_KEYS:
                named.update(key for key in rows.iterator(chunk_size=5000) if key in wanted)
                continue
            for start in range(0, len(keys), 500):
                named.update(rows.filter(**{f"{column}__in": keys[start : start + 500]}))
    return named
