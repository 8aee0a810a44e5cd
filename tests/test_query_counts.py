"""Lists, details and pages ask the database as often for many rows as for few, and deep pages hold the right rows."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from accounts.models import Membership, Project
from accounts.services import personal_project
from datasets.models import Dataset, Sample
from inference.models import InferenceBatch, InferenceResult
from models_app.models import SegmentationModel
from tests.factories import CompletedModelFactory, DatasetFactory, InferenceFactory, SampleFactory
from uploads.models import Upload

pytestmark = pytest.mark.django_db

FEW, MANY = 3, 45


def grow(dataset: Dataset, model: Any, to: int) -> None:
    """Datasets, models, samples, single inferences, batches and a batch's images, `to` of each."""
    for table in (DatasetFactory, CompletedModelFactory, InferenceFactory):
        for _ in range(to - table._meta.model.objects.filter(**_own(table)).count()):
            of_model = {"model": model} if table is InferenceFactory else {}
            table.create(created_by=model.created_by, **of_model)
    for position in range(dataset.samples.count(), to):
        SampleFactory.create(dataset=dataset, position=position, split="val" if position % 3 else "train")
    Dataset.objects.filter(pk=dataset.pk).update(file_count=to)
    for _ in range(to - InferenceBatch.objects.count()):
        InferenceBatch.objects.create(project=model.project, model=model, status="queued", archive_name="a.zip")
    batch = InferenceBatch.objects.earliest("pk")
    for _ in range(to - batch.inferences.count()):
        InferenceFactory.create(created_by=model.created_by, model=model, batch=batch)


def _own(table: Any) -> dict[str, Any]:
    return {"batch": None} if table is InferenceFactory else {}


def addresses(dataset: Dataset, model: Any) -> list[str]:
    batch = InferenceBatch.objects.earliest("pk")
    sample = dataset.samples.earliest("pk")
    api = "/api/v1"
    return [
        f"{api}/datasets/",
        f"{api}/datasets/{dataset.pk}/",
        f"{api}/datasets/{dataset.pk}/samples/?page_size=2&page=2",
        f"{api}/datasets/{dataset.pk}/samples/?split=val",
        f"{api}/datasets/{dataset.pk}/samples/?search=case&ordering=-name",
        f"{api}/models/",
        f"{api}/models/{model.pk}/",
        f"{api}/inferences/",
        f"{api}/inferences/?status=queued&ordering=confidence&search=image",
        f"{api}/inferences/{model.inferences.earliest('pk').pk}/",
        f"{api}/inference-batches/",
        f"{api}/inference-batches/{batch.pk}/",
        "/",
        "/datasets/",
        f"/datasets/{dataset.pk}/",
        f"/datasets/{dataset.pk}/samples/{sample.pk}/",
        "/models/",
        f"/models/{model.pk}/",
        "/inferences/",
        f"/inferences/batches/{batch.pk}/",
        f"/inferences/batches/{batch.pk}/?order=unsure",
    ]


def queries(client: Client, address: str) -> int:
    with CaptureQueriesContext(connection) as found:
        assert client.get(address).status_code == 200, address
    return len(found.captured_queries)


def test_the_number_of_queries_does_not_depend_on_the_number_of_rows(client: Client) -> None:
    dataset = DatasetFactory.create()
    model = CompletedModelFactory.create(dataset=dataset)
    client.get("/api/v1/datasets/")  # makes the local user
    grow(dataset, model, FEW)
    few = {address: queries(client, address) for address in addresses(dataset, model)}
    grow(dataset, model, MANY)
    assert {address: queries(client, address) for address in few} == few
    assert max(few.values()) < 20


def test_nor_does_it_for_one_of_several_users(client: Client, settings: Any) -> None:
    settings.MEDSEG_SINGLE_USER = False
    anna = User.objects.create_user("anna")
    client.force_login(anna)
    dataset = DatasetFactory.create(created_by=anna)
    model = CompletedModelFactory.create(created_by=anna, dataset=dataset)
    grow(dataset, model, FEW)
    few = {address: queries(client, address) for address in addresses(dataset, model)}
    grow(dataset, model, MANY)
    for number in range(20):
        project = Project.objects.create(name=f"shared {number}")
        Membership.objects.create(project=project, user=anna, role="member")
        DatasetFactory.create(project=project)
    assert {address: queries(client, address) for address in few} == few
    assert max(few.values()) < 20


@pytest.mark.skipif(connection.vendor != "sqlite", reason="reads the plan as SQLite tells it")
@pytest.mark.parametrize("table", [Dataset, SegmentationModel, InferenceBatch, InferenceResult, Upload])
def test_a_users_rows_are_found_in_their_order_on_an_index(table: Any, settings: Any) -> None:
    settings.MEDSEG_SINGLE_USER = False
    anna = User.objects.create_user("anna")
    personal_project(anna)
    plan = table.objects.visible_to(anna).values_list("pk")[:50].explain()
    assert "USING COVERING INDEX" in plan
    assert "_of_project" in plan
    assert "TEMP B-TREE" not in plan, "all of the user's rows would be sorted for one page"


def names(answer: Any) -> list[str]:
    return [row["name"] for row in answer.json()["results"]]


def test_pages_of_samples_are_the_same_by_number_and_by_order(api: APIClient) -> None:
    dataset = DatasetFactory.create(file_count=9)
    for position in range(9):
        SampleFactory.create(dataset=dataset, position=position, name=f"case {position}", split="val")
    path = f"/api/v1/datasets/{dataset.pk}/samples/"
    for page in (1, 2, 3):
        by_number = api.get(f"{path}?page_size=4&page={page}")
        by_order = api.get(f"{path}?page_size=4&page={page}&ordering=position")
        assert by_number.json()["count"] == by_order.json()["count"] == 9
        assert names(by_number) == names(by_order) == [f"case {index}" for index in range(9)][page * 4 - 4 : page * 4]
    assert api.get(f"{path}?page_size=4&page=4").status_code == 404
    backwards = api.get(f"{path}?page_size=4&page=3&ordering=-name&split=val")
    assert names(backwards) == ["case 0"]


def test_a_dataset_with_a_gap_in_its_numbers_is_counted(api: APIClient) -> None:
    dataset = DatasetFactory.create(file_count=4)
    for position in (0, 1, 5):
        SampleFactory.create(dataset=dataset, position=position)
    answer = api.get(f"/api/v1/datasets/{dataset.pk}/samples/?page_size=2&page=2").json()
    assert (answer["count"], len(answer["results"])) == (3, 1)
    assert Sample.objects.get(pk=answer["results"][0]["id"]).position == 5


def test_counts_of_batches(api: APIClient) -> None:
    model = CompletedModelFactory.create()
    for words in (["completed", "failed", "cancelled", "queued"], [], ["completed"]):
        batch = InferenceBatch.objects.create(project=model.project, model=model, status="queued", archive_name="a.zip")
        for word in words:
            more = {"completed": {"output_image_s3_key": "x", "output_sha256": "y"}, "failed": {"error": "why"}}
            InferenceFactory.create(model=model, batch=batch, status=word, **more.get(word, {}))
    found = api.get("/api/v1/inference-batches/").json()["results"]
    assert [(row["total"], row["completed"], row["failed"]) for row in found] == [(1, 1, 0), (0, 0, 0), (4, 1, 2)]
