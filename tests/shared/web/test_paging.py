"""Pages of long lists: counted once in a while, and never with rows that are not there."""

from __future__ import annotations

from typing import Any

import pytest
from django.test.utils import CaptureQueriesContext

from datasets.models import Dataset
from medseg_site.shared.web import paging
from medseg_site.shared.web.paging import KeyPaginator
from tests.factories import DatasetFactory

pytestmark = pytest.mark.django_db


def counts(captured: CaptureQueriesContext) -> int:
    return sum("COUNT(" in query["sql"] for query in captured.captured_queries)


def test_a_long_list_is_counted_once_for_all_its_pages(
    monkeypatch: pytest.MonkeyPatch, django_assert_max_num_queries: Any
) -> None:
    monkeypatch.setattr(paging, "MANY", 3)
    monkeypatch.setattr(paging, "_counts", paging._Counts())
    DatasetFactory.create_batch(5)
    rows = list(Dataset.objects.order_by("pk"))
    with django_assert_max_num_queries(20) as captured:
        pages = [list(KeyPaginator(Dataset.objects.order_by("pk"), 2).page(number)) for number in (1, 2, 3)]
    assert [row.pk for page in pages for row in page] == [row.pk for row in rows]
    assert counts(captured) == 1
    rows[4].delete()
    assert list(KeyPaginator(Dataset.objects.order_by("pk"), 2).page(3)) == []  # the count is old, the rows are not
    with django_assert_max_num_queries(20) as captured:
        assert KeyPaginator(Dataset.objects.filter(pk=rows[1].pk), 2).count == 1  # another list
        assert KeyPaginator(Dataset.objects.filter(pk=rows[1].pk), 2).count == 1
    assert counts(captured) == 2  # short ones are counted each time
    assert KeyPaginator(Dataset.objects.none(), 2).count == 0


def test_a_count_is_forgotten_after_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "MANY", 0)
    monkeypatch.setattr(paging, "SECONDS_KNOWN", 0.0)
    monkeypatch.setattr(paging, "_counts", paging._Counts())
    DatasetFactory(name="first")
    assert KeyPaginator(Dataset.objects.order_by("pk"), 2).count == 1
    DatasetFactory(name="second")
    assert KeyPaginator(Dataset.objects.order_by("pk"), 2).count == 2
