"""manifest.json beside the objects of every row: all that the row and its parts say, so that storage alone restores them.

It is written from the model's columns. A row that is being worked on is written as queued, for that is what it becomes when
only storage is left. Columns that mean something to a running process only are left out.
"""

from __future__ import annotations

import copy
import gzip
import json
import logging
import uuid as uuids
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
from threading import Lock
from typing import Any

from cachetools import LRUCache
from django.conf import settings
from django.db import models, transaction
from django.utils import timezone

from medseg_site.shared.catalogue.chores import RESTORE_MANIFESTS, leave_to_a_worker
from medseg_site.shared.catalogue.declarations import declared, parts_of, prefix_of
from medseg_site.shared.catalogue.stored_row import StoredRow
from medseg_site.shared.storage import objects as storage
from medseg_site.shared.storage import scratch

log = logging.getLogger(__name__)

FORMAT = 1
NAME = "manifest.json"
# Who holds the row, and when its message was sent: true of processes, not of the row.
LEFT_OUT = {"claim_token", "heartbeat_at", "due_at", "sent_at", "called_at", "interruptions"}
MAX_REWRITES = 5
PARALLEL = 16

Document = dict[str, Any]


class ManifestError(Exception):
    """A manifest that is missing, damaged, or of a version that this program cannot read. The text says which."""


# --- What a manifest says -----------------------------------------------------------------------------------------------
def document_of(row: StoredRow) -> Document:
    """Everything that the row and its parts say. Parts in a file of their own are named with their number."""
    model = type(row)
    columns = {column.name: _plain(row, column) for column in written_columns(model)}
    if row.is_working:
        columns |= {"status": row.WORDS.queued, "progress": {}, "attempt": max(0, row.attempt - 1)}
    document: Document = {"manifest": FORMAT, "kind": row.KIND, "row": columns}
    for name, part, owner in parts_of(model):
        rows = getattr(row, name)
        if declared(part).apart:
            document[name] = {"file": apart_file(name), "count": rows.count()}
        else:
            document[name] = [_part_document(item, owner) for item in rows.all()]
    return document


def written_columns(model: Any) -> list[Any]:
    return [column for column in model._meta.concrete_fields if column.name not in LEFT_OUT]


def apart_file(part: str) -> str:
    return f"{part}.jsonl.gz"


def _part_document(row: models.Model, owner: str) -> Document:
    return {column.name: _plain(row, column) for column in written_columns(type(row)) if column.name != owner}


def _plain(row: Any, column: Any) -> Any:
    value = getattr(row, column.attname)
    if column.is_relation:
        return None if value is None else _reference(row, column)
    # A datetime is a date. DjangoJSONEncoder would cut its microseconds off.
    if isinstance(value, date):
        return value.isoformat()
    return str(value) if isinstance(value, uuids.UUID) else value


def _reference(row: Any, column: Any) -> Any:
    """A reference to a user is the name. To a row it is the uuid, with the number for people, or all columns where it is told in full."""
    if points_to_user(column):
        # The whole user, who is then known to all rows that share this one.
        return getattr(row, column.name).get_username()
    if declared(column.related_model).told_in_full:
        return _in_full(row, column)
    if column.is_cached(row):
        value = getattr(row, column.name).uuid
    else:
        # Only this column: other columns may be large.
        keys = column.related_model._default_manager.filter(pk=getattr(row, column.attname))
        value = keys.values_list("uuid", flat=True).get()
    return {"id": getattr(row, column.attname), "uuid": str(value)}


def _in_full(row: Any, column: Any) -> Document:
    model = column.related_model
    columns = written_columns(model)
    if column.is_cached(row):
        told = getattr(row, column.name)
    else:
        relations = [other.name for other in columns if other.is_relation]
        told = model._default_manager.select_related(*relations).get(pk=getattr(row, column.attname))
    return {other.name: _plain(told, other) for other in columns}


def points_to_user(column: Any) -> bool:
    return bool(column.is_relation) and column.related_model._meta.label == settings.AUTH_USER_MODEL


# --- Writing ------------------------------------------------------------------------------------------------------------
_last_written: LRUCache[str, str] = LRUCache(100)  # key → text, to spare a second write of the same
_last_written_lock = Lock()


def store(row: StoredRow) -> None:
    """Write the manifest of a row as it is in memory."""
    _write(f"{prefix_of(row)}/{NAME}", json.dumps(document_of(row), indent=1, ensure_ascii=False))


def _write(key: str, text: str) -> None:
    storage.store_bytes(key, text.encode())
    with _last_written_lock:
        _last_written[key] = text


def store_apart(row: StoredRow) -> None:
    """Write the parts that have a file of their own, line by line, so that memory does not grow with their number."""
    for name, part, owner in parts_of(type(row)):
        if not declared(part).apart:
            continue
        with scratch.scratch_folder("parts") as folder:
            path = folder / apart_file(name)
            # With mtime=0 the same rows give the same bytes.
            with path.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=3, mtime=0) as out:
                for line in lines_apart(row, name, owner):
                    out.write(line.encode() + b"\n")
            storage.store_file(f"{prefix_of(row)}/{path.name}", path)


def lines_apart(row: StoredRow, name: str, owner: str) -> Iterator[str]:
    for item in getattr(row, name).order_by("pk").iterator(chunk_size=2000):
        yield json.dumps(_part_document(item, owner), ensure_ascii=False)


def store_done(row: StoredRow, columns: dict[str, Any], *, is_fresh: bool = False) -> dict[str, Any]:
    """Write the manifest of a row as it will be once it is finished with `columns`. Returns the columns to finish it with.

    is_fresh: the row in memory differs from the database by `columns` and a wish to cancel only; it is not read again.
    Nothing is written for a deleted row; `finish` will raise for it.
    """
    columns = {"finished_at": timezone.now(), **columns}
    future = copy.copy(row) if is_fresh else _fresh(type(row), row.pk)
    if future is not None:
        for name, value in {"status": row.WORDS.done, "error": None, "claim_token": None, **columns}.items():
            setattr(future, name, value)
        store_apart(future)
        store(future)
    return columns


def refresh(model: type[StoredRow], owner: uuids.UUID, *, anew: bool = False) -> None:
    """Write the manifest of a row as it is in the database. It is written again if the row changed meanwhile.

    anew: also if this process has written the same text before.
    """
    key = storage.object_key(declared(model).collection, owner, NAME)
    with _last_written_lock:
        lies_there = None if anew else _last_written.get(key)
    for _ in range(MAX_REWRITES):
        row = model._default_manager.filter(uuid=owner).first()
        if row is None:
            # The row was deleted: a manifest would bring it back.
            storage.delete_object(key)
            return
        text = json.dumps(document_of(row), indent=1, ensure_ascii=False)
        if text == lies_there:
            return
        _write(key, text)
        lies_there = text


def restore(model: type[StoredRow], owners: Iterable[uuids.UUID]) -> None:
    """Write the manifests of the rows that exist, whatever is stored there."""
    for owner in owners:
        refresh(model, owner, anew=True)


def rewrite(row: StoredRow) -> None:
    """Write the manifest and its parts again, whatever is stored there."""
    store_apart(row)
    store(row)


def _fresh(model: type[StoredRow], pk: int) -> Any:
    return model._default_manager.filter(pk=pk).first()


def keep_up(row: StoredRow) -> None:
    """Write the manifest once the present change is committed. Storage that is down is no error: a worker tries again."""
    transaction.on_commit(partial(_surely, type(row), row.pk, row.uuid))


def keep_new(row: StoredRow) -> None:
    """The same for a row that was just created: it is written as it is in memory. Call it before the message is sent."""
    transaction.on_commit(partial(_surely, type(row), row.pk, row.uuid, partial(store, row)))


def store_many(rows: Iterable[StoredRow]) -> None:
    """Write the manifests of many new rows, in parallel where storage is remote."""
    if not storage.is_remote():
        for row in rows:
            _surely(type(row), row.pk, row.uuid, partial(store, row))
        return
    with ThreadPoolExecutor(PARALLEL) as pool:
        for row in rows:
            key, document = f"{prefix_of(row)}/{NAME}", document_of(row)  # here: threads have no database connection
            write = partial(storage.store_json, key, document)
            pool.submit(_surely, type(row), row.pk, row.uuid, write)


def _surely(model: type[StoredRow], pk: int, owner: uuids.UUID, write: Callable[[], object] | None = None) -> None:
    try:
        (write or partial(refresh, model, owner))()
    except Exception as error:
        log.warning("the manifest of %s %s is not written (%s); it will be tried again", model.KIND, pk, error)
        if not leave_to_a_worker(RESTORE_MANIFESTS, model, [owner]):
            log.warning("`manage.py verify_storage --repair` writes it")


# --- Reading ------------------------------------------------------------------------------------------------------------
def read(key: str) -> Document:
    """Raises ManifestError."""
    try:
        with storage.open_stream(key) as source:
            document = json.loads(source.read())
    except FileNotFoundError:
        raise ManifestError("there is no manifest.json") from None
    except ValueError:
        raise ManifestError("manifest.json is damaged") from None
    if (
        not isinstance(document, dict)
        or document.get("manifest") != FORMAT
        or not isinstance(document.get("row"), dict)
    ):
        raise ManifestError(f"manifest.json is not of format {FORMAT}, the one that this version reads")
    return document


def read_apart(key: str) -> Iterator[Document]:
    """The rows of a part that has a file of its own. Raises ManifestError, also half-way."""
    try:
        with storage.open_stream(key) as raw, gzip.open(raw) as lines:
            for line in lines:
                yield json.loads(line)
    except FileNotFoundError:
        raise ManifestError(f"{key.rpartition('/')[2]} is missing") from None
    except (OSError, EOFError, ValueError):
        raise ManifestError(f"{key.rpartition('/')[2]} is damaged") from None


def differences(row: StoredRow, document: Document) -> list[str]:
    """Names of the columns and parts that differ between manifest and row. Of an active row only the identity is compared."""
    true = document_of(row)
    said = {**document, "row": {name: _existing(row, name, value) for name, value in document["row"].items()}}
    if row.is_active:
        return [name for name in ("id", "uuid") if said["row"].get(name) != true["row"][name]]
    true = json.loads(json.dumps(true))  # as JSON tells it: tuples are lists
    for column in written_columns(type(row)):
        if column.is_relation and declared(column.related_model).told_in_full:
            # Which one it is, that is: a project may have another name since.
            for columns in (true["row"], said["row"]):
                columns[column.name] = (columns.get(column.name) or {}).get("uuid")
    names = [name for name in true["row"].keys() | said["row"].keys() if true["row"].get(name) != said["row"].get(name)]
    return sorted(names) + [name for name in declared(type(row)).parts if true[name] != said.get(name)]


def _existing(row: StoredRow, name: str, value: Any) -> Any:
    """A reference to a deleted row counts as none, since deleting one row does not rewrite a thousand manifests."""
    if isinstance(value, dict) and "uuid" in value:
        column = next((column for column in row._meta.concrete_fields if column.name == name), None)
        if column is not None and column.is_relation:
            target: Any = column.related_model
            exists = target._default_manager.filter(uuid=value["uuid"]).exists()
            return value if exists else None
    return value
