"""Restores the rows of the database from the manifests in storage, each row with its parts.

Rows that exist are not changed. So `rebuild` can run twice, or on a database that lost only some rows.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from itertools import islice
from operator import or_
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.management.color import no_style
from django.db import Error, connection, models, transaction
from django.db.models import Q

from medseg_site.shared.base.local_user import local_user
from medseg_site.shared.catalogue import manifests
from medseg_site.shared.catalogue.declarations import (
    declared,
    models_told_in_full,
    named_by_any,
    owner_of,
    parts_of,
    stored_models,
)
from medseg_site.shared.catalogue.manifests import Document, ManifestError
from medseg_site.shared.jobs.row import Job
from medseg_site.shared.storage import objects as storage

# Manifests per chunk. They are read in parallel, because each takes a round trip to S3.
READ_AT_ONCE = 64
INSERT_AT_ONCE = 500


@dataclass(frozen=True)
class Remark:
    """Says why the row of a prefix was not restored, or was restored with a change, and what to do about it."""

    prefix: str
    reason: str
    cure: str


@dataclass
class Report:
    """Numbers of rows by table, and remarks. `queued` counts the restored rows whose work has not ended."""

    restored: Counter[str] = field(default_factory=Counter)
    present: Counter[str] = field(default_factory=Counter)
    queued: Counter[str] = field(default_factory=Counter)
    skipped: list[Remark] = field(default_factory=list)
    notes: list[Remark] = field(default_factory=list)


class SkippedError(Exception):
    def __init__(self, reason: str, cure: str) -> None:
        self.reason, self.cure = reason, cure
        super().__init__(reason)


def rebuild(*, dry_run: bool = False, on_step: Callable[[str], None] = lambda table: None) -> Report:
    """Restore the rows that are missing.

    dry_run: write nothing; the report says what would be restored.
    on_step(table): called after each prefix.
    """
    builder = _Builder(dry_run)
    for model in stored_models():
        builder.restore_table(model, on_step)
    if not dry_run:
        _reset_sequences()
        report = builder.report
        report.skipped = [remark for remark in report.skipped if not _only_lends(remark.prefix)]
    return builder.report


def _only_lends(prefix: str) -> bool:
    """Whether a row was deleted and other rows name all objects that are left below its prefix.

    Versions of a dataset share objects.
    """
    if storage.size_of(f"{prefix}/{manifests.NAME}") is not None:
        return False
    keys = [item.key for item in storage.objects_below(prefix)]
    return bool(keys) and len(named_by_any(keys)) == len(keys)


class _Builder:
    def __init__(self, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.report = Report()
        # Table → uuid → number, of rows that exist or would exist after a real run.
        self.known: dict[Any, dict[uuid.UUID, int]] = {}
        self.users: dict[str, Any] = {}

    def restore_table(self, model: type[Job], on_step: Callable[[str], None]) -> None:
        table = model._meta.db_table
        self.known[model] = dict(model._default_manager.values_list("uuid", "pk"))
        taken = set(self.known[model].values())
        for prefix, answer in _read_all(declared(model).collection):
            owner = owner_of(prefix.rpartition("/")[2])
            try:
                if owner is None:
                    raise SkippedError(
                        "it is not named by a uuid", "It was not made by this program; move it elsewhere."
                    )
                if owner in self.known[model]:
                    self.report.present[table] += 1
                elif isinstance(answer, ManifestError):
                    cure = (
                        "Put the manifest back from a backup of the storage. Leftovers are swept by `collect_garbage`."
                    )
                    raise SkippedError(str(answer), cure)
                else:
                    self._restore(model, prefix, answer, taken)
            except SkippedError as error:
                self.report.skipped.append(Remark(prefix, error.reason, error.cure))
            on_step(table)

    def _restore(self, model: type[Job], prefix: str, document: Document, taken: set[int]) -> None:
        row = self._row(model, prefix, document)
        if row.pk in taken:
            cure = "Rebuild into an empty database, or delete the new row first: pages and results name rows by number."
            raise SkippedError(f"the number {row.pk} belongs to another {model.KIND} of this database", cure)
        if str(row.uuid) != prefix.rpartition("/")[2]:
            raise SkippedError("its manifest is that of another one", "Put its own manifest back from a backup.")
        if not self.dry_run:
            self._insert(row, prefix, document)
        taken.add(row.pk)
        self.known[model][row.uuid] = row.pk
        self.report.restored[model._meta.db_table] += 1
        self.report.queued[model._meta.db_table] += row.is_active

    def _row(self, model: type[Job], prefix: str, document: Document) -> Job:
        said = document["row"]
        row = model()
        try:
            self._fill(row, prefix, said)
            for column, source in declared(model).taken_from.items():
                if column not in said:
                    setattr(row, column, getattr(row, source))
        except (ValidationError, TypeError, ValueError, KeyError) as error:
            raise SkippedError(f"its manifest says what no row can ({error})", "Put it back from a backup.") from None
        if row.status == row.WORDS.queued:
            # Its message is lost: the reaper sends another at once.
            row.sent_at = None
        return row

    def _fill(self, row: Any, prefix: str, said: Document) -> None:
        for column in manifests.written_columns(type(row)):
            if column.name not in said:
                # The column is newer than the manifest, so it keeps its default.
                continue
            value = said[column.name]
            if column.is_relation:
                setattr(row, column.attname, self._target(prefix, column, value))
            else:
                setattr(row, column.attname, None if value is None else column.to_python(value))

    def _target(self, prefix: str, column: Any, value: Any) -> int | None:
        if value is None:
            return None
        if manifests.points_to_user(column):
            return self._user(value)
        target = column.related_model
        if declared(target).told_in_full:
            return self._told_in_full(prefix, target, value)
        number = self.known[target].get(uuid.UUID(value["uuid"]))
        if number is not None:
            return number
        place = storage.object_key(declared(target).collection, uuid.UUID(value["uuid"]))
        if column.remote_field.on_delete is models.CASCADE:
            raise SkippedError(
                f"what it belongs to is not there ({place})", f"Restore {place} first, then run this again."
            )
        if any(remark.prefix == place for remark in self.report.skipped):
            self.report.notes.append(
                Remark(prefix, f"its {column.name} could not be restored, so it is without one", f"See {place}.")
            )
        # It was deleted before the database was lost.
        return None

    def _told_in_full(self, prefix: str, target: Any, said: Document) -> int | None:
        """Return the number of the row that the manifest describes in full. The row is restored if it is missing.

        If `_same_as` finds another row, that row takes its place. Returns None in a dry run that would restore the row.
        """
        known = self.known.setdefault(target, dict(target._default_manager.values_list("uuid", "pk")))
        owner = uuid.UUID(said["uuid"])
        if owner not in known:
            row = target()
            self._fill(row, prefix, said)
            there = _same_as(row)
            if there is None:
                if self.dry_run:
                    return None
                if target._default_manager.filter(pk=row.pk).exists():
                    row.pk = None
                row.save(force_insert=True)
            else:
                cure = "`manage.py verify_storage --repair` writes that into the manifests."
                self.report.notes.append(
                    Remark(prefix, f"{there} takes the place of its {row._meta.verbose_name}", cure)
                )
            known[owner] = (there or row).pk
        return known[owner]

    def _user(self, name: str) -> int | None:
        if name not in self.users:
            user = get_user_model()._default_manager.filter(username=name).first()
            if user is None and not self.dry_run:
                # The platform's own user is made as always. Others get a password from an administrator.
                is_own = name == "local" and settings.MEDSEG_SINGLE_USER
                user = local_user() if is_own else get_user_model().objects.create_user(name)
            self.users[name] = user.pk if user else None
        number: int | None = self.users[name]
        return number

    def _insert(self, row: Job, prefix: str, document: Document) -> None:
        try:
            with transaction.atomic():
                row.save(force_insert=True)
                for name, part, owner in parts_of(type(row)):
                    for some in _chunks(_parts(row, part, owner, _documents(row, prefix, document.get(name) or []))):
                        part._default_manager.bulk_create(some)
        except ManifestError as error:
            cure = "Put the file back from a backup, or take the archive that lies beside it and upload that again."
            raise SkippedError(str(error), cure) from None
        except (Error, ValidationError, TypeError, ValueError, KeyError) as error:
            cure = "Rebuild into an empty database; if it is one, put the manifest back from a backup."
            raise SkippedError(f"the database does not take it ({str(error).splitlines()[0]})", cure) from None


def _same_as(row: Any) -> Any:
    """Find the row that has the same value in a unique relation, so that this row cannot be saved beside it.

    For example, a user can have only one personal project. Returns None if there is no such row.
    """
    columns = [column for column in row._meta.concrete_fields if column.is_relation and column.unique]
    same = [Q(**{column.attname: value}) for column in columns if (value := getattr(row, column.attname)) is not None]
    return row._meta.default_manager.filter(reduce(or_, same)).first() if same else None


def _parts(row: Job, part: Any, owner: str, documents: Iterable[Document]) -> Iterator[models.Model]:
    for said in documents:
        item = part(**{owner: row})
        for column in manifests.written_columns(part):
            if column.name in said:
                value = said[column.name]
                setattr(item, column.attname, None if value is None else column.to_python(value))
        yield item


def _documents(row: Job, prefix: str, said: Any) -> Iterator[Document]:
    """Yield the parts of a row from its manifest, or from the separate file that the manifest names.

    The separate file is written when the row is finished, so it is read only for a row that is done. Raises
    ManifestError if the file is missing or damaged, or holds another number of parts than the manifest says.
    """
    if isinstance(said, list):
        yield from said
    elif row.status == row.WORDS.done:
        count = 0
        for document in manifests.read_apart(f"{prefix}/{said['file']}"):
            yield document
            count += 1
        if count != said["count"]:
            raise ManifestError(f"{said['file']} holds {count} of the {said['count']} that the manifest speaks of")


def _chunks(items: Iterator[models.Model]) -> Iterator[list[models.Model]]:
    while some := list(islice(items, INSERT_AT_ONCE)):
        yield some


def _read_all(collection: str) -> Iterator[tuple[str, Document | ManifestError]]:
    """Yield (prefix, manifest) for each prefix of a collection, sorted.

    The manifest is a ManifestError where it cannot be read.
    """
    folders = storage.owners_of(collection)
    with ThreadPoolExecutor(16) as pool:
        for start in range(0, len(folders), READ_AT_ONCE):
            prefixes = [f"{collection}/{name}" for name in folders[start : start + READ_AT_ONCE]]
            yield from zip(prefixes, pool.map(_read, prefixes), strict=True)


def _read(prefix: str) -> Document | ManifestError:
    try:
        return manifests.read(f"{prefix}/{manifests.NAME}")
    except ManifestError as error:
        return error


def _reset_sequences() -> None:
    """Set the counters of Postgres past the numbers of the restored rows. SQLite does that by itself."""
    tables = [table for model in stored_models() for table in (model, *(part for _, part, _ in parts_of(model)))]
    tables += models_told_in_full()
    with connection.cursor() as cursor:
        for statement in connection.ops.sequence_reset_sql(no_style(), tables):
            cursor.execute(statement)
