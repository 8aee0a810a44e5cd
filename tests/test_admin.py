"""The admin: every list and record page, actions through services, deletions with files, nothing by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.admin.models import DELETION, LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.core.files.storage import default_storage
from django.test import Client
from django.urls import reverse

from datasets.models import Dataset, DatasetClass, Sample
from inference.models import InferenceBatch, InferenceResult
from medseg_site.shared.catalogue import manifests
from medseg_site.shared.storage import objects as storage
from models_app.models import Epoch, SegmentationModel
from tests.factories import CompletedModelFactory, DatasetFactory, InferenceFactory, ModelFactory, SampleFactory
from tests.pages import IMAGE_METRICS, METRICS, batch, completed_inference

pytestmark = pytest.mark.django_db

TABLES = [
    "datasets_dataset",
    "datasets_sample",
    "models_app_segmentationmodel",
    "models_app_epoch",
    "inference_inferenceresult",
    "inference_inferencebatch",
]


def rows(count: int = 1) -> list[dict[str, Any]]:
    """One row of each table, `count` times."""
    made = []
    for number in range(count):
        dataset = DatasetFactory.create(issues=[{"severity": "warning", "file": "<i>", "detail": "odd"}], issue_count=1)
        model = CompletedModelFactory.create(dataset=dataset, metrics=METRICS)
        of_batch = batch(model=model)
        made.append(
            {
                "datasets_dataset": dataset,
                "datasets_sample": SampleFactory.create(dataset=dataset),
                "models_app_segmentationmodel": model,
                "models_app_epoch": Epoch.objects.create(
                    model=model, epoch=number, learning_rate=1, seconds=1, images_per_second=1
                ),
                "inference_inferenceresult": completed_inference(model=model, batch=of_batch, metrics=IMAGE_METRICS),
                "inference_inferencebatch": of_batch,
            }
        )
    return made


def act(client: Client, table: str, action: str, *chosen: Any, **more: Any) -> Any:
    data = {"action": action, "_selected_action": [row.pk for row in chosen], **more}
    return client.post(reverse(f"admin:{table}_changelist"), data)


def said(answer: Any) -> str:
    return " | ".join(str(message) for message in get_messages(answer.wsgi_request))


@pytest.mark.parametrize("table", TABLES)
def test_lists_and_records_open(client: Client, table: str) -> None:
    row = rows()[0][table]
    page = client.get(reverse(f"admin:{table}_changelist"))
    assert page.status_code == 200
    assert f"/{row.pk}/change/" in page.content.decode()
    record = client.get(reverse(f"admin:{table}_change", args=[row.pk]))
    assert record.status_code == 200
    assert client.get(reverse(f"admin:{table}_changelist"), {"q": "no such row"}).status_code == 200


@pytest.mark.parametrize("table", TABLES)
def test_nothing_is_added_by_hand(client: Client, table: str) -> None:
    assert client.get(reverse(f"admin:{table}_add")).status_code == 403


@pytest.mark.parametrize("table", TABLES)
def test_lists_ask_the_database_as_often_for_many_rows(
    client: Client, table: str, django_assert_max_num_queries: Callable[..., Any]
) -> None:
    url = reverse(f"admin:{table}_changelist")
    rows(2)
    client.get(url)
    with django_assert_max_num_queries(60) as few:
        client.get(url)
    rows(6)
    with django_assert_max_num_queries(len(few.captured_queries)):
        client.get(url)


def test_lists_show_pictures_and_links_between_records(client: Client) -> None:
    made = rows()[0]
    dataset, sample, model = made["datasets_dataset"], made["datasets_sample"], made["models_app_segmentationmodel"]
    page = client.get(reverse("admin:datasets_dataset_changelist")).content.decode()
    assert reverse("dataset-sample-thumbnail", args=[dataset.pk, sample.pk]) in page
    assert f"/admin/datasets/sample/?dataset__id__exact={dataset.pk}" in page
    assert f"/admin/models_app/segmentationmodel/?dataset__id__exact={dataset.pk}" in page
    page = client.get(reverse("admin:inference_inferenceresult_changelist")).content.decode()
    assert reverse("inference-overlay", args=[made["inference_inferenceresult"].pk]) in page
    assert reverse("admin:models_app_segmentationmodel_change", args=[model.pk]) in page
    record = client.get(reverse("admin:models_app_segmentationmodel_change", args=[model.pk])).content.decode()
    assert reverse("model-case-overlay", args=[model.pk, 2]) in record  # the worst case
    assert client.get(f"/admin/datasets/sample/?dataset__id__exact={dataset.pk}").status_code == 200
    assert client.get(f"/admin/models_app/epoch/?model__id__exact={model.pk}").status_code == 200


def test_users_texts_are_escaped(client: Client) -> None:
    dataset = DatasetFactory.create(name="<script>1</script>", issues=[{"file": "<b>", "detail": "x"}])
    for url in (
        reverse("admin:datasets_dataset_changelist"),
        reverse("admin:datasets_dataset_change", args=[dataset.pk]),
    ):
        page = client.get(url).content.decode()
        assert "<script>1</script>" not in page
        assert "<b>" not in page


def test_machine_columns_cannot_be_changed(client: Client) -> None:
    dataset = DatasetFactory.create()
    item = dataset.classes.get(value=255)
    given = {
        "name": "new name",
        "description": "new words",
        "status": "error",
        "s3_key": "elsewhere",
        "claim_token": "11111111-1111-1111-1111-111111111111",
        "classes-TOTAL_FORMS": 1,
        "classes-INITIAL_FORMS": 1,
        "classes-0-id": item.pk,
        "classes-0-dataset": dataset.pk,
        "classes-0-value": 7,
        "classes-0-name": "nucleus",
        "classes-0-color": "#00ff00",
    }
    url = reverse("admin:datasets_dataset_change", args=[dataset.pk])
    assert client.post(url, {**given, "classes-0-color": "green"}).status_code == 200  # refused: not a colour
    assert client.post(url, given).status_code == 302
    before, dataset = dataset, Dataset.objects.get(pk=dataset.pk)
    assert (dataset.name, dataset.description) == ("new name", "new words")
    assert (dataset.status, dataset.s3_key, dataset.claim_token) == ("ready", before.s3_key, None)
    item.refresh_from_db()
    assert (item.value, item.name, item.color) == (255, "nucleus", "#00ff00")
    model = CompletedModelFactory.create(dataset=dataset)
    page = client.get(reverse("admin:models_app_segmentationmodel_change", args=[model.pk])).content.decode()
    assert 'name="_save"' not in page  # nothing of a model can be changed
    sample = SampleFactory.create(dataset=dataset)
    assert client.post(reverse("admin:datasets_sample_change", args=[sample.pk]), {"name": "x"}).status_code == 403


def test_actions_go_through_the_services(client: Client) -> None:
    broken, ready = DatasetFactory.create(status="error", error="why"), DatasetFactory.create()
    answer = act(client, "datasets_dataset", "check_again", broken, ready)
    assert "Being checked again: 1." in said(answer)
    assert f"{ready}: It is ready." in said(answer)
    training, done = ModelFactory.create(status="queued"), CompletedModelFactory.create()
    answer = act(client, "models_app_segmentationmodel", "cancel", training, done)
    assert "Stopping: 1." in said(answer)
    assert "nothing to cancel" in said(answer)
    assert "Queued again: 1." in said(act(client, "models_app_segmentationmodel", "resume", training))
    queued = InferenceFactory.create()
    assert "Stopping: 1." in said(act(client, "inference_inferenceresult", "cancel", queued))
    assert "Queued again: 1." in said(act(client, "inference_inferenceresult", "retry", queued))
    states = [
        Dataset.objects.get(pk=broken.pk),
        SegmentationModel.objects.get(pk=training.pk),
        InferenceResult.objects.get(),
    ]
    assert [row.status for row in states] == ["uploaded", "queued", "queued"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("table", ["datasets_dataset", "models_app_segmentationmodel", "inference_inferenceresult"])
@pytest.mark.parametrize("way", ["action", "page"])
def test_deletion_removes_the_files_too(client: Client, table: str, way: str) -> None:
    row = rows()[0][table]
    if table == "models_app_segmentationmodel":
        InferenceBatch.objects.all().delete()  # one that is at work keeps its model
    kind = {"datasets_dataset": "datasets", "models_app_segmentationmodel": "models"}.get(table, "inferences")
    key = storage.store_bytes(storage.object_key(kind, row.uuid, "file.bin"), b"bytes").key
    if way == "action":
        question = act(client, table, "delete_selected", row)
        assert "with all its parts and files" in question.content.decode()
        assert default_storage.exists(key)
        answer = act(client, table, "delete_selected", row, post="yes")
    else:
        answer = client.post(reverse(f"admin:{table}_delete", args=[row.pk]), {"post": "yes"})
    assert answer.status_code == 302
    assert not type(row).objects.filter(pk=row.pk).exists()
    assert not default_storage.exists(key)


@pytest.mark.django_db(transaction=True)
def test_batch_is_deleted_with_its_inferences(client: Client) -> None:
    row = rows()[0]["inference_inferencebatch"]
    assert act(client, "inference_inferencebatch", "delete_selected", row, post="yes").status_code == 302
    assert not InferenceBatch.objects.exists()
    assert not InferenceResult.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_deletion_that_a_service_refuses_is_told_and_leaves_the_row_whole(client: Client) -> None:
    free, used = DatasetFactory.create(), DatasetFactory.create(name="used")
    ModelFactory.create(status="queued", dataset=used)
    gone, key = (
        storage.store_bytes(storage.object_key("datasets", row.uuid, "a.bin"), b"b").key for row in (free, used)
    )
    manifests.rewrite(used)
    answer = act(client, "datasets_dataset", "delete_selected", free, used, post="yes")
    assert "used: A training reads this dataset" in said(answer)
    assert "Deleted: 1 of 2." in said(answer)
    assert "Successfully" not in said(answer)
    assert [entry.object_id for entry in LogEntry.objects.filter(action_flag=DELETION)] == [str(free.pk)]
    assert not default_storage.exists(gone)
    answer = client.post(reverse("admin:datasets_dataset_delete", args=[used.pk]), {"post": "yes"})
    assert "A training reads this dataset" in said(answer)
    assert Dataset.objects.get() == used
    assert default_storage.exists(key)
    assert manifests.differences(used, manifests.read(f"datasets/{used.uuid}/manifest.json")) == []
    assert DatasetClass.objects.count() == 2


def test_staff_without_all_rights_see_their_own_rows(client: Client, settings: Any) -> None:
    settings.MEDSEG_SINGLE_USER = False
    staff = User.objects.create_user("staff", is_staff=True)
    staff.user_permissions.set(Permission.objects.filter(codename__in=["view_dataset", "view_sample"]))
    theirs, own = DatasetFactory.create(), DatasetFactory.create(created_by=staff)
    SampleFactory.create(dataset=theirs, name="their sample")
    SampleFactory.create(dataset=own, name="own sample")
    client.force_login(staff)
    page = client.get(reverse("admin:datasets_dataset_changelist")).content.decode()
    assert own.name in page
    assert theirs.name not in page
    assert client.get(reverse("admin:datasets_dataset_change", args=[theirs.pk])).status_code == 302
    page = client.get(reverse("admin:datasets_sample_changelist")).content.decode()
    assert "own sample" in page
    assert "their sample" not in page
    assert client.get(reverse("admin:models_app_segmentationmodel_changelist")).status_code == 403
    assert Sample.objects.count() == 2
