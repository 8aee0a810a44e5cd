"""What can be asked of models over the API, without training any."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from rest_framework.test import APIClient

from medseg_site.shared.jobs import claim
from ml_core.planning.hyperparameters import specs
from models_app.models import Epoch, SegmentationModel
from tests.factories import CompletedModelFactory, DatasetFactory, ModelFactory
from tests.pages import DECISIONS, ESTIMATE, METRICS

pytestmark = pytest.mark.django_db


def create(api: APIClient, **body: Any) -> Any:
    return api.post("/api/v1/models/", body)


def test_a_model_needs_a_name_and_a_ready_dataset_only(api: APIClient) -> None:
    dataset = DatasetFactory.create()
    answer = create(api, name="cells", dataset=dataset.pk)
    assert answer.status_code == 202
    row = answer.json()
    assert answer["Location"].endswith(f"/api/v1/models/{row['id']}/")
    assert (row["status"], row["version"], row["hyperparameters"]) == ("queued", 1, {})
    assert [item["value"] for item in row["classes"]] == [0, 255]
    assert create(api, name="cells", dataset=dataset.pk).json()["version"] == 2


def test_a_dataset_that_is_not_ready_is_a_conflict_and_an_unknown_one_a_bad_request(api: APIClient) -> None:
    dataset = DatasetFactory.create(status="uploaded")
    assert create(api, name="cells", dataset=dataset.pk).status_code == 409
    answer = create(api, name="cells", dataset=10**9)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["attr"] == "dataset"


def test_each_wrong_hyperparameter_is_named(api: APIClient) -> None:
    wrong = {"epochs": 0, "learning_rate": "fast", "colour": "red"}
    answer = create(api, name="cells", dataset=DatasetFactory.create().pk, hyperparameters=wrong)
    assert answer.status_code == 400
    assert {error["attr"] for error in answer.json()["errors"]} == {f"hyperparameters.{name}" for name in wrong}
    assert not SegmentationModel.objects.exists()


def test_what_cannot_be_planned_is_refused_before_it_starts(api: APIClient) -> None:
    dataset = DatasetFactory.create()
    for path in ("/api/v1/models/", "/api/v1/models/plan/"):
        body = {"name": "cells", "dataset": dataset.pk, "hyperparameters": {"configuration": "3d"}}
        answer = api.post(path, body)
        assert answer.status_code == 400
        error = answer.json()["errors"][0]
        assert error["attr"] == "hyperparameters.configuration"
        assert "pictures" in error["detail"]
    assert not SegmentationModel.objects.exists()


def test_a_plan_is_told_with_its_reasons_and_starts_nothing(api: APIClient) -> None:
    dataset = DatasetFactory.create()
    answer = api.post("/api/v1/models/plan/", {"dataset": dataset.pk, "hyperparameters": {"epochs": 3}})
    assert answer.status_code == 200, answer.content
    plan = answer.json()
    assert (plan["hyperparameters"]["epochs"], plan["hyperparameters"]["configuration"]) == (3, "2d")
    assert plan["reasons"]["epochs"] == "You chose it."
    assert set(plan["hyperparameters"]) == set(specs())
    assert not SegmentationModel.objects.exists()
    unchecked = DatasetFactory.create(status="uploaded")
    assert api.post("/api/v1/models/plan/", {"dataset": unchecked.pk}).status_code == 409


def test_a_warm_start_names_a_model_with_weights_by_number_or_text(api: APIClient) -> None:
    earlier = CompletedModelFactory.create()
    for given in (earlier.pk, str(earlier.pk)):
        answer = create(api, name="x", dataset=earlier.dataset_id, hyperparameters={"warm_start": given})
        assert answer.status_code == 202, answer.content
        assert SegmentationModel.objects.get(pk=answer.json()["id"]).requested == {"warm_start": str(earlier.pk)}
    without_weights = ModelFactory.create()
    for wrong in (without_weights.pk, 10**6, "9" * 30, "²", "nonsense", "", True, 1.5, [1]):
        answer = create(api, name="x", dataset=earlier.dataset_id, hyperparameters={"warm_start": wrong})
        assert answer.status_code == 400, wrong
        assert answer.json()["errors"][0]["attr"] == "hyperparameters.warm_start"


def test_a_warm_start_is_one_of_the_users_own_models(settings: Any) -> None:
    settings.MEDSEG_SINGLE_USER = False
    anna, bert = (User.objects.create_user(name) for name in ("anna", "bert"))
    theirs = CompletedModelFactory.create(created_by=anna, dataset__created_by=anna)
    mine = DatasetFactory.create(created_by=bert)
    api = APIClient()
    api.force_authenticate(bert)
    assert create(api, name="x", dataset=mine.pk, hyperparameters={"warm_start": theirs.pk}).status_code == 400


def test_a_model_tells_what_was_estimated_and_decided(api: APIClient) -> None:
    model = CompletedModelFactory.create(estimate=ESTIMATE, decisions=DECISIONS, metrics=METRICS)
    shown = api.get(f"/api/v1/models/{model.pk}/").json()
    assert shown["estimate"] == ESTIMATE
    assert shown["decisions"] == DECISIONS
    assert shown["metrics"]["calibration"]["ece_foreground"] == 0.0789


def test_cancel_resume_and_delete_follow_the_life_of_the_row(api: APIClient) -> None:
    model = ModelFactory.create()
    path = f"/api/v1/models/{model.pk}/"
    assert api.delete(path).status_code == 409
    assert api.post(f"{path}cancel/").json()["status"] == "cancelled"
    assert api.post(f"{path}cancel/").status_code == 409
    assert api.post(f"{path}resume/").json()["status"] == "queued"
    assert api.post(f"{path}resume/").status_code == 409
    assert claim.claim(SegmentationModel, model.pk)
    assert api.post(f"{path}cancel/").json()["status"] == "training"  # its worker will stop it
    SegmentationModel.objects.filter(pk=model.pk).update(
        status="cancelled", finished_at=timezone.now(), claim_token=None
    )
    assert api.delete(path).status_code == 204
    assert api.get(path).status_code == 404


def test_a_dataset_in_training_cannot_be_deleted_and_a_model_outlives_its_dataset(api: APIClient) -> None:
    model = ModelFactory.create()
    path = f"/api/v1/datasets/{model.dataset_id}/"
    assert api.delete(path).status_code == 409
    api.post(f"/api/v1/models/{model.pk}/cancel/")
    assert api.delete(path).status_code == 204
    assert api.get(f"/api/v1/models/{model.pk}/").json()["dataset"] is None
    assert api.post(f"/api/v1/models/{model.pk}/resume/").status_code == 409


def test_epochs_come_in_pages_and_lists_are_filtered(api: APIClient) -> None:
    model, other = CompletedModelFactory.create(), ModelFactory.create()
    for epoch in (2, 1, 3):
        Epoch.objects.create(model=model, epoch=epoch, learning_rate=0.1, seconds=1, images_per_second=9)
    page = api.get(f"/api/v1/models/{model.pk}/epochs/?page_size=2").json()
    assert (page["count"], [row["epoch"] for row in page["results"]]) == (3, [1, 2])
    assert [row["id"] for row in api.get("/api/v1/models/?status=completed").json()["results"]] == [model.pk]
    assert [row["id"] for row in api.get(f"/api/v1/models/?dataset={other.dataset_id}").json()["results"]] == [other.pk]
    assert api.get("/api/v1/models/?status=strange").status_code == 400
    assert api.get(f"/api/v1/models/{other.pk}/download/").status_code == 409


def test_the_variants_tell_what_they_can_do(api: APIClient) -> None:
    page = api.get("/api/v1/architectures/").json()
    unet = next(row for row in page["results"] if row["name"] == "unet")
    assert unet["dimensions"] == 2
    assert "resnet34" in unet["encoders"]
    assert unet["parameters"]["properties"]["encoder"]["enum"] == unet["encoders"]


def test_the_number_of_queries_of_a_list_does_not_grow(api: APIClient, django_assert_max_num_queries: Any) -> None:
    for _ in range(12):
        CompletedModelFactory.create()
    api.get("/api/v1/models/")  # makes the single user
    with django_assert_max_num_queries(6):
        assert len(api.get("/api/v1/models/").json()["results"]) == 12
    with django_assert_max_num_queries(6):
        assert len(api.get("/api/v1/datasets/").json()["results"]) == 12


def test_a_resume_with_impossible_numbers_is_refused_and_changes_nothing(api: APIClient) -> None:
    model = ModelFactory.create(status="cancelled", requested={"epochs": 2})
    for wrong in ({"epochs": 0}, {"epochs": 10**400}, {"epochs": "many"}, {"encoder": "resnet34"}, [1]):
        answer = api.post(f"/api/v1/models/{model.pk}/resume/", wrong, format="json")
        assert answer.status_code == 400, answer.content
    api.post(f"/models/{model.pk}/resume/", {"epochs": "9" * 5000}, format="multipart")  # the page: as if left out
    model.refresh_from_db()
    assert model.requested == {"epochs": 2}
