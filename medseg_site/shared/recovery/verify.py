"""Checks that storage holds the objects that the rows name, unchanged, and that the manifests match the rows.

Tests that kill processes use `verify` as their invariant: once all work has ended, it must find no problem.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from itertools import islice, zip_longest
from typing import Any

from django.db.models import Q
from django.utils import timezone

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
from medseg_site.shared.catalogue.manifests import ManifestError
from medseg_site.shared.jobs.row import Job
from medseg_site.shared.storage import objects as storage
from medseg_site.shared.storage.objects import ObjectInfo

# Objects that are read in parallel.
READ_AT_ONCE = 8
RECENT_ROWS, SETTLED_SECONDS = 500, 60
MENDABLE = {"missing_manifest", "stale_manifest", "stale_parts"}


@dataclass(frozen=True)
class Problem:
    """A fault in one object or manifest of a row.

    `code` is missing_object, empty_object, damaged_object, missing_manifest, stale_manifest or stale_parts.
    """

    code: str
    table: str
    row: int
    key: str
    detail: str
    cure: str
    mended: bool = False


@dataclass
class Report:
    rows: int = 0
    objects: int = 0
    bytes_read: int = 0
    # Objects that lie below the prefix of no row and that no row names. `collect_garbage` removes them.
    orphans: int = 0
    orphan_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def open_problems(self) -> list[Problem]:
        return [problem for problem in self.problems if not problem.mended]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "clean": not self.open_problems}


def verify(
    *, quick: bool = False, repair: bool = False, on_step: Callable[[str, int], None] = lambda table, rows: None
) -> Report:
    """Check the objects and the manifest of every row, and count the orphans.

    quick: only check that objects exist and are not empty; compute no checksums.
    repair: rewrite the manifests that are missing or differ from their row.
    on_step(table, rows): called after each chunk of rows.
    """
    report = Report()
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        for model in stored_models():
            for rows in _with_objects(model, report):
                for row, objects in rows:
                    _verify_row(row, objects, report, pool, quick=quick, repair=repair)
                on_step(model._meta.db_table, len(rows))
        for model in reserving_models():
            for _, objects in unreserved(model):
                _count_orphans(objects, report)
    return report


def mend_recent_manifests(*, since_seconds: float | None = None) -> int:
    """Write the manifests that a killed process left missing or outdated. Returns the number of written manifests.

    A process can be killed after it changed a row and before it wrote the manifest. This checks the rows of each table
    that were queued or ended in the last `since_seconds` (None: at any time), at most the newest RECENT_ROWS. It skips
    rows that are done, because a row becomes done only after its manifest is stored.
    """
    now, mended = timezone.now(), 0
    for model in stored_models():
        rows = model._default_manager.exclude(status=model.WORDS.done)
        if since_seconds is not None:
            since = now - timedelta(seconds=since_seconds)
            rows = rows.filter(Q(due_at__gte=since) | Q(finished_at__gte=since))
        # The youngest rows wait for the next pass: their manifests may be on their way.
        settled = now - timedelta(seconds=SETTLED_SECONDS)
        rows = rows.filter(Q(finished_at=None, due_at__lt=settled) | Q(finished_at__lt=settled))
        # Only a few rows are read at a time, because their logs may be long.
        for row in rows.order_by("-due_at")[:RECENT_ROWS].iterator(chunk_size=20):
            if any(_manifest_problems(row)):
                manifests.refresh(model, row.uuid, anew=True)
                mended += 1
    return mended


def _with_objects(model: type[Job], report: Report) -> Iterator[list[tuple[Job, list[ObjectInfo]]]]:
    """Yield the rows of a table in chunks, each row with the objects below its prefix.

    Rows of which the walk over storage found no object come last. Orphans are counted in the report.
    """
    seen: set[uuid.UUID] = set()
    for some in storage.owners_in_chunks(declared(model).collection):
        owners = {owner: objects for name, objects in some.items() if (owner := owner_of(name))}
        rows = list(model._default_manager.filter(uuid__in=owners))
        seen.update(row.uuid for row in rows)
        known = {str(row.uuid) for row in rows}
        _count_orphans([item for name, objects in some.items() if name not in known for item in objects], report)
        yield [(row, owners[row.uuid]) for row in rows]
    without = [pk for owner, pk in model._default_manager.values_list("uuid", "pk") if owner not in seen]
    for start in range(0, len(without), storage.OWNERS_AT_ONCE):
        rows = list(model._default_manager.filter(pk__in=without[start : start + storage.OWNERS_AT_ONCE]))
        # Their objects are listed again, because they may be younger than the walk.
        yield [(row, list(storage.objects_below(prefix_of(row)))) for row in rows]


def _count_orphans(objects: list[ObjectInfo], report: Report) -> None:
    named = named_by_any([item.key for item in objects]) if objects else set()
    for item in objects:
        if item.key not in named:
            report.orphans += 1
            report.orphan_bytes += item.size


def _verify_row(
    row: Job, objects: list[ObjectInfo], report: Report, pool: ThreadPoolExecutor, *, quick: bool, repair: bool
) -> None:
    sizes = {item.key: item.size for item in objects}
    report.rows += 1
    report.objects += len(sizes)
    found = [*_object_problems(row, sizes, report, pool, quick=quick), *_manifest_problems(row)]
    if not found:
        return
    now = type(row)._default_manager.filter(pk=row.pk).first()
    if now is None:
        # It was deleted meanwhile.
        return
    # The row changed meanwhile: look at what it is now.
    if _state(now) != _state(row):
        sizes = {item.key: item.size for item in storage.objects_below(prefix_of(now))}
        found = list(_object_problems(now, sizes, report, pool, quick=quick))
    # A manifest is written a moment after its row, so it is read again in any case.
    found = [problem for problem in found if problem.code not in MENDABLE] + list(_manifest_problems(now))
    if repair and any(problem.code in MENDABLE for problem in found):
        manifests.rewrite(now)
    report.problems += [replace(problem, mended=repair and problem.code in MENDABLE) for problem in found]


def _state(row: Job) -> dict[str, Any]:
    return {column.attname: getattr(row, column.attname) for column in manifests.written_columns(type(row))}


def _object_problems(
    row: Job, sizes: dict[str, int], report: Report, pool: ThreadPoolExecutor, *, quick: bool
) -> Iterator[Problem]:
    table, pk = row._meta.db_table, row.pk

    def look(named: tuple[str, str]) -> tuple[str, int, str]:
        """Check one named object. Returns (key, bytes read, code of the problem or "")."""
        key, checksum = named
        # An object that the walk did not list lies below another row's prefix, or is younger than the walk.
        size = sizes[key] if key in sizes else storage.size_of(key)
        if size is None:
            return key, 0, "missing_object"
        if size == 0:
            return key, 0, "empty_object"
        if quick or not checksum:
            return key, 0, ""
        try:
            found, read = _hashed(key)
        except FileNotFoundError:
            return key, 0, "missing_object"
        return key, read, "" if found == checksum else "damaged_object"

    named = objects_of(row)
    while some := list(islice(named, 64)):
        for key, read, wrong in pool.map(look, some):
            report.bytes_read += read
            if wrong:
                yield Problem(wrong, table, pk, key, *_detail_and_cure(wrong))


def _hashed(key: str) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with storage.open_stream(key) as source:
        while chunk := source.read(storage.CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def _detail_and_cure(wrong: str) -> tuple[str, str]:
    cure = "Put it back from a backup of the storage; without one, delete the row and upload or train again."
    return {
        "missing_object": ("The row names it, but it is not in storage.", cure),
        "empty_object": ("It is empty.", cure),
        "damaged_object": ("Its SHA-256 is not the one that the row holds.", cure),
    }[wrong]


def _manifest_problems(row: Job) -> Iterator[Problem]:
    table, pk, prefix = row._meta.db_table, row.pk, prefix_of(row)
    key = f"{prefix}/{manifests.NAME}"
    cure = "`manage.py verify_storage --repair` writes it again from the row."
    try:
        document = manifests.read(key)
    except ManifestError as error:
        yield Problem("missing_manifest", table, pk, key, f"{str(error).capitalize()}.", cure)
        return
    if names := manifests.differences(row, document):
        yield Problem("stale_manifest", table, pk, key, f"It says otherwise than the row: {', '.join(names)}.", cure)
    for name, part, owner in parts_of(type(row)):
        if declared(part).apart and row.status == row.WORDS.done:
            apart = f"{prefix}/{manifests.apart_file(name)}"
            if reason := _apart_differs(row, name, owner, apart):
                yield Problem("stale_parts", table, pk, apart, reason, cure)


def _apart_differs(row: Job, name: str, owner: str, key: str) -> str:
    said = manifests.read_apart(key)
    true = map(json.loads, manifests.lines_apart(row, name, owner))
    try:
        same = all(
            # A column that is newer than the file is missing there and null in the row.
            one is not None and other is not None and dict.fromkeys(other) | one == other
            for one, other in zip_longest(said, true)
        )
    except ManifestError as error:
        return f"{str(error).capitalize()}."
    return "" if same else f"It says otherwise than the {name} of the row."
