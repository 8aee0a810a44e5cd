"""Pages of long lists. An index alone says which rows a page has, and only those rows are read.

With OFFSET and LIMIT a database reads and sorts whole rows that it then throws away; here it does so with keys only. The total
of a long list is counted every few seconds, so it may be that old. The rows are always current.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cachetools import TTLCache
from django.core.exceptions import EmptyResultSet
from django.core.paginator import Page, Paginator
from django.db.models import Count, Model, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.utils.functional import cached_property

if TYPE_CHECKING:
    _Paginator = Paginator[Any]
else:
    _Paginator = Paginator  # it takes a type in its stubs only


# Counting so many rows takes longer than reading a page of them.
MANY = 10_000
SECONDS_KNOWN = 10.0
MAX_KNOWN = 1_000  # lists


class _Counts:
    """The totals of long lists, kept for some seconds: a person who leafs through one has it counted once, not for each page."""

    def __init__(self) -> None:
        self._known: TTLCache[tuple[Any, ...], int] = TTLCache(MAX_KNOWN, SECONDS_KNOWN)
        self._lock = threading.Lock()

    def of(self, rows: QuerySet[Any]) -> int:
        try:
            query = (rows.db, *rows.query.sql_with_params())
        except EmptyResultSet:
            return 0
        with self._lock:
            known = self._known.get(query)
        if known is not None:
            return known
        count = rows.count()
        if count > MANY:
            with self._lock:
                self._known[query] = count
        return count


_counts = _Counts()


class KeyPaginator(_Paginator):
    @cached_property
    def count(self) -> int:
        known: int | None = getattr(self.object_list, "known_count", None)
        if known is not None:
            return known
        return _counts.of(self.object_list) if isinstance(self.object_list, QuerySet) else super().count

    def page(self, number: int | str) -> Page[Any]:
        number = self.validate_number(number)
        start = (number - 1) * self.per_page
        end = min(start + self.per_page, self.count)
        return Page(_rows_between(self.object_list, start, end), number, self)


def _rows_between(rows: Any, start: int, end: int) -> Sequence[Any]:
    if not isinstance(rows, QuerySet):
        part: Sequence[Any] = rows[start:end]
        return part
    if field := getattr(rows, "numbered_by", None):
        return list(rows.filter(**{f"{field}__gte": start, f"{field}__lt": end}))
    keys = list(rows.values_list("pk", flat=True)[start:end])
    found = {row.pk: row for row in rows.order_by().filter(pk__in=keys)}
    return [found[key] for key in keys if key in found]


def counted(rows: QuerySet[Any], count: int, *, numbered_by: str = "") -> QuerySet[Any]:
    """Tell the paginator how many rows there are, and which column numbers them from 0 without a gap, in their order.

    Call it last: a queryset that is filtered afterwards loses it.
    """
    rows.known_count, rows.numbered_by = count, numbered_by  # type: ignore[attr-defined]  # a queryset takes them along
    return rows


def related_count(table: type[Model], parent: str, **conditions: Any) -> Coalesce:
    """The number of rows of `table` that belong to a row, for annotate(). It is counted for the rows of one page only."""
    rows = table._default_manager.filter(**{parent: OuterRef("pk")}, **conditions)
    counts = rows.order_by().values(parent).annotate(number=Count("*")).values("number")
    return Coalesce(Subquery(counts), 0)
