"""Who sees which page, in which order rows come, and how often a page asks the database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from tests.factories import (
    CompletedModelFactory,
    DatasetFactory,
    ModelFactory,
    SampleFactory,
)
from tests.pages import LISTS, batch, completed_inference, text

pytestmark = pytest.mark.django_db


def test_other_users_see_nothing(client: Client, settings: Any) -> None:
    settings.MEDSEG_SINGLE_USER = False
    owner = User.objects.create_user("owner")
    dataset = DatasetFactory.create(created_by=owner)
    sample = SampleFactory.create(dataset=dataset)
    model = CompletedModelFactory.create(created_by=owner, dataset=dataset)
    inference = completed_inference(created_by=owner, model=model)
    many = batch(created_by=owner, model=model)
    pages = [
        dataset.get_absolute_url(),
        reverse("datasets:sample", args=[dataset.pk, sample.pk]),
        reverse("datasets:row", args=[dataset.pk]),
        model.get_absolute_url(),
        reverse("models_app:row", args=[model.pk]),
        inference.get_absolute_url(),
        many.get_absolute_url(),
    ]
    changes = [
        reverse("datasets:delete", args=[dataset.pk]),
        reverse("datasets:recheck", args=[dataset.pk]),
        reverse("datasets:cancel", args=[dataset.pk]),
        reverse("datasets:class", args=[dataset.pk, dataset.classes.get(value=255).pk]),
        reverse("models_app:delete", args=[model.pk]),
        reverse("models_app:cancel", args=[model.pk]),
        reverse("models_app:resume", args=[model.pk]),
        reverse("inference:delete", args=[inference.pk]),
        reverse("inference:cancel", args=[inference.pk]),
        reverse("inference:retry", args=[inference.pk]),
        reverse("inference:again", args=[inference.pk]),
        reverse("inference:batch_delete", args=[many.pk]),
    ]
    for url in [*pages, *(reverse(name) for name in LISTS)]:
        assert client.get(url)["Location"].startswith("/admin/login/"), url
    client.force_login(User.objects.create_user("somebody else"))
    assert {client.get(url).status_code for url in pages} == {404}
    assert {client.post(url).status_code for url in changes} == {404}
    for name in LISTS:
        page = text(client, reverse(name))
        for row in (dataset, model, inference, many):
            assert row.get_absolute_url() not in page
    refused = client.post(reverse("models_app:create"), {"name": "x", "dataset": dataset.pk})
    assert refused.status_code == 422
    client.force_login(owner)
    assert {client.get(url).status_code for url in pages} == {200}


@pytest.mark.parametrize("name", ["home", "datasets:list", "models_app:list", "inference:list", "inference:create"])
def test_lists_ask_the_database_as_often_for_many_rows(
    client: Client, name: str, django_assert_max_num_queries: Callable[..., Any]
) -> None:
    def add(count: int) -> None:
        for _ in range(count):
            dataset = DatasetFactory.create()
            SampleFactory.create(dataset=dataset)
            model = CompletedModelFactory.create(dataset=dataset)
            ModelFactory.create(dataset=dataset)
            completed_inference(model=model)
            completed_inference(model=model, batch=batch(model=model))

    add(2)
    client.get(reverse(name))
    with django_assert_max_num_queries(100) as few:
        client.get(reverse(name))
    add(6)
    with django_assert_max_num_queries(len(few.captured_queries)):
        client.get(reverse(name))


def test_dataset_page_asks_the_database_as_often_for_many_samples(
    client: Client, django_assert_max_num_queries: Callable[..., Any]
) -> None:
    dataset = DatasetFactory.create()
    SampleFactory.create_batch(2, dataset=dataset)
    client.get(dataset.get_absolute_url())
    with django_assert_max_num_queries(100) as few:
        client.get(dataset.get_absolute_url())
    SampleFactory.create_batch(20, dataset=dataset)
    with django_assert_max_num_queries(len(few.captured_queries)):
        client.get(dataset.get_absolute_url())


@pytest.mark.parametrize("name", ["datasets:list", "models_app:list", "inference:list"])
def test_lists_show_the_newest_first(client: Client, name: str) -> None:
    rows = [completed_inference() for _ in range(3)]
    shown = {"datasets:list": "dataset", "models_app:list": "model", "inference:list": "inference"}[name]
    of = {
        "dataset": lambda row: row.model.dataset.pk,
        "model": lambda row: row.model.pk,
        "inference": lambda row: row.pk,
    }[shown]
    page = text(client, reverse(name))
    places = [page.index(f'id="{shown}-{of(row)}"') for row in rows]
    assert places == sorted(places, reverse=True)
