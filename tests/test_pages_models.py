"""The pages of models and inferences: every state, forms and their refusals."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.core.files.storage import default_storage
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from inference.models import InferenceBatch, InferenceResult
from medseg_site.shared.storage import objects as storage
from ml_core.planning.hyperparameters import specs
from models_app.models import Epoch, SegmentationModel
from tests.factories import (
    CompletedModelFactory,
    DatasetFactory,
    InferenceFactory,
    ModelFactory,
    plan_of,
)
from tests.pages import (
    DECISIONS,
    ESTIMATE,
    HTMX,
    IMAGE_METRICS,
    METRICS,
    NOTICE,
    batch,
    completed_inference,
    said,
    text,
)

pytestmark = pytest.mark.django_db


def test_training_form_starts_with_a_name_and_a_dataset(client: Client) -> None:
    dataset = DatasetFactory.create()
    url = reverse("models_app:create")
    page = text(client, f"{url}?dataset={dataset.pk}")
    assert f'<option value="{dataset.pk}" selected>' in page
    assert "<details" in page.replace("details open", "")
    answer = client.post(url, {"name": "cells", "dataset": dataset.pk})
    model = SegmentationModel.objects.get()
    assert answer["Location"] == model.get_absolute_url()
    assert (model.name, model.version, model.requested) == ("cells", 1, {})
    client.post(url, {"name": "cells", "dataset": dataset.pk, "epochs": "3", "architecture": "fpn"})
    assert SegmentationModel.objects.get(version=2).requested == {"epochs": 3, "architecture": "fpn"}


@pytest.mark.parametrize(
    ("given", "field", "why"),
    [
        ({"name": ""}, "name", "required"),
        ({"dataset": ""}, "dataset", "required"),
        ({"dataset": "999"}, "dataset", "not ready"),
        ({"patch_size": "50"}, "patch_size", "multiple of 16"),
        ({"epochs": "0"}, "epochs", "too small"),
        ({"epochs": "many"}, "epochs", "whole number"),
        ({"learning_rate": "nan"}, "learning_rate", "number"),
        ({"architecture": "nonsense"}, "architecture", "valid choice"),
        ({"architecture": "plain-unet", "encoder": "mit_b0"}, "encoder", "cannot use"),
        ({"configuration": "3d"}, "configuration", "needs volumes"),
        ({"spacing": "wide"}, "spacing", "two or three numbers"),
        ({"warm_start": "77"}, "warm_start", "valid choice"),
    ],
)
def test_training_form_says_what_is_wrong_beside_the_field(
    client: Client, given: dict[str, str], field: str, why: str
) -> None:
    dataset = DatasetFactory.create()
    answer = client.post(reverse("models_app:create"), {"name": "x", "dataset": dataset.pk, **given})
    assert answer.status_code == 422
    assert why in str(answer.context["form"].errors[field])
    assert f'id="id_{field}_error"' in answer.content.decode()
    if field not in {"name", "dataset"}:
        assert "<details" in answer.content.decode()
        assert " open>" in answer.content.decode()
    assert not SegmentationModel.objects.exists()


def test_training_form_shows_every_field_once_and_offers_models_to_start_from(client: Client) -> None:
    usable, queued = CompletedModelFactory.create(), ModelFactory.create()
    page = text(client, reverse("models_app:create"))
    for name in specs():
        assert page.count(f'name="{name}"') == 1, name
    assert f'<option value="{usable.pk}">{usable}</option>' in page
    assert f">{queued}</option>" not in page
    answer = client.post(
        reverse("models_app:create"), {"name": "next", "dataset": usable.dataset_id, "warm_start": usable.pk}
    )
    assert answer.status_code == 303
    assert SegmentationModel.objects.get(name="next").requested == {"warm_start": str(usable.pk)}


def test_plan_is_shown_with_its_reasons_before_the_start(client: Client) -> None:
    dataset, url = DatasetFactory.create(), reverse("models_app:plan")
    page = client.post(url, {"dataset": dataset.pk, "epochs": "3"}).content.decode()
    for shown in ("Plain U-Net", "The images are pictures, so the network is 2D.", "You chose it.", "Data and time"):
        assert shown in page, shown
    refused = client.post(url, {"dataset": dataset.pk, "configuration": "3d"})
    assert refused.status_code == 200
    errors = refused.content.decode()
    assert 'id="plan-errors" type="application/json">{"configuration": ' in errors
    assert "needs volumes" in errors
    assert "Choose a dataset" in client.post(url, {}).content.decode()
    assert not SegmentationModel.objects.exists()


@pytest.mark.parametrize("wanted", ["", "abc", "999", "9" * 30])
def test_training_form_survives_any_dataset_in_its_address(client: Client, wanted: str) -> None:
    DatasetFactory.create()
    assert "Train a model" in text(client, f"{reverse('models_app:create')}?dataset={wanted}")


def test_model_in_training_shows_progress_and_cancel(client: Client) -> None:
    now = {"stage": "training", "epoch": 3, "epochs": 12, "step": 7, "steps": 40, "fraction": 0.25, "eta_seconds": 200}
    model = ModelFactory.create(status="training", claim_token=uuid.uuid4(), progress={**now, "train_loss": 0.4321})
    page = text(client, model.get_absolute_url())
    for shown in ("3 of 12", "7 of 40", "3 min 20 s", "0.432", "is training and has no weights yet."):
        assert shown in page
    part = text(client, reverse("models_app:live", args=[model.pk]), headers=HTMX)
    assert "3 of 12" in part
    assert 'id="status" class="ms-2 align-middle" hx-swap-oob="true"' in part  # the heading and the plan follow
    assert 'id="plan" aria-labelledby="plan-title" hx-swap-oob="true"' in part
    assert "hx-swap-oob" not in page
    assert "epoch 3 of 12" in text(client, reverse("models_app:list"))
    client.post(reverse("models_app:cancel", args=[model.pk]))
    assert "Stopping; the best weights are kept" in text(client, model.get_absolute_url())
    SegmentationModel.objects.filter(pk=model.pk).update(
        status="cancelled", finished_at=timezone.now(), claim_token=None
    )
    end = client.get(reverse("models_app:live", args=[model.pk]), headers=HTMX)
    assert end["HX-Reselect"] == "#content"
    assert "nothing to cancel" in said(client.post(reverse("models_app:cancel", args=[model.pk])))[-1]


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        ({"stage": "refining", "done": 1, "total": 3}, "Measuring what helps on the validation cases"),
        ({"stage": "compiling", "done": 0, "total": 1}, "Compiling the network for this machine"),
        ({"stage": "training", "epoch": 2, "network": 2, "networks": 5}, "Training network 2 of 5"),
    ],
)
def test_model_in_training_says_what_it_does_and_what_was_measured(
    client: Client, progress: dict[str, Any], shown: str
) -> None:
    model = ModelFactory.create(status="training", claim_token=uuid.uuid4(), progress=progress, estimate=ESTIMATE)
    page = text(client, model.get_absolute_url())
    for words in (shown, "16.4 images a second", "about 42 epochs", "in 5 min", "1.4\xa0GB of memory"):
        assert words in page, words


def test_completed_model_shows_what_was_measured_on_its_validation_cases(client: Client) -> None:
    model = CompletedModelFactory.create(metrics=METRICS, decisions=DECISIONS)
    page = text(client, model.get_absolute_url())
    for shown in (
        "OpenVINO, bf16",
        "0.00012",
        "+0.0123 Dice on 4 validation cases",
        'Flips <span class="badge bg-green-lt ms-1">used</span>',
        "fill holes (best of those tried)",
        "0.8125",
        "0.079",  # ECE of the foreground
        "[0.9, 0.8, 10]",
        "confidence 0.432",
        "3 cases",
        "Volume error (mm³)",
        "1,240",
        "37.5 %",
        "3 times a class that is there was not found, 1 time it was found elsewhere, 2 times",
        "The final scores are measured on whole images",
    ):
        assert shown in page, shown
    stopped = CompletedModelFactory.create()
    page = text(client, stopped.get_absolute_url())
    assert "Measured on the validation cases" not in page
    assert "reliability-points" not in page


def test_completed_model_shows_metrics_and_worst_cases_first(client: Client) -> None:
    model = CompletedModelFactory.create(
        metrics=METRICS,
        plan=plan_of(loss="focal").to_json(),
        requested={"loss": "focal"},
        warnings=["Few cases."],
    )
    Epoch.objects.create(model=model, epoch=1, learning_rate=0.1, seconds=1, images_per_second=9)
    page = text(client, model.get_absolute_url())
    for shown in (
        "0.875",
        "0.812 to 0.938",
        "HD95 (mm)",
        "The whole image fits into one patch.",
        "32 pixels",
        "Few cases.",
        "You chose it.",
        "Focal",
        "bfloat16 is faster on this machine",
    ):
        assert shown in page, shown
    assert page.index("bad one") < page.index("good one") < page.index("undefined one")
    assert "unseen one" not in page
    assert reverse("model-case-overlay", args=[model.pk, 2]) in page
    assert f"/inferences/new/?model={model.pk}" in page
    assert NOTICE in page


def test_failed_model_says_why_and_can_go_on(client: Client) -> None:
    model = ModelFactory.create(status="failed", error="The memory ran out. Use a smaller patch.")
    assert "The memory ran out. Use a smaller patch." in text(client, model.get_absolute_url())
    client.post(reverse("models_app:resume", args=[model.pk]))
    model.refresh_from_db()
    assert model.status == "queued"
    orphan = ModelFactory.create(status="failed", error="why", dataset=None)
    assert "Its dataset was deleted" in text(client, orphan.get_absolute_url())


def test_model_is_deleted_unless_it_is_in_use(client: Client) -> None:
    model = CompletedModelFactory.create()
    inference = InferenceFactory.create(model=model)
    url = reverse("models_app:delete", args=[model.pk])
    assert "Images are being segmented" in said(client.post(url))[0]
    InferenceResult.objects.update(status="cancelled", finished_at=timezone.now())
    assert client.post(url)["Location"] == reverse("models_app:list")
    assert "deleted" in text(client, inference.get_absolute_url())


def test_completed_inference_shows_viewer_classes_and_scores(client: Client) -> None:
    row = completed_inference(metrics=IMAGE_METRICS, spacing=[0.5, 0.5], warnings=["Other spacing."], seconds=1.5)
    page = text(client, row.get_absolute_url())
    for shown in ("viewer-config", "1,000", "90.0 %", "1.50 ml", "0.562", "0.625", "Other spacing.", "1.5 s", NOTICE):
        assert shown in page, shown
    assert reverse("inference-mask", args=[row.pk]) in page
    assert "data-unsure" not in page
    sure = completed_inference(confidence=0.8765, certainty_key="x/certainty.png", certainty_sha256="0" * 64)
    page = text(client, sure.get_absolute_url())
    for shown in ("0.876", "Show where the model is unsure", reverse("inference-certainty", args=[sure.pk])):
        assert shown in page, shown


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        ({"status": "queued"}, "Waiting for its turn"),
        ({"status": "running"}, "Segmenting"),
        ({"status": "failed", "error": "The image has 3 channels."}, "The image has 3 channels."),
        ({"status": "cancelled"}, "The segmentation was cancelled"),
        ({"status": "cancelled", "model": None}, "Its model was deleted"),
    ],
)
def test_inference_in_other_states(client: Client, columns: dict[str, Any], shown: str) -> None:
    row = InferenceFactory.create(**columns)
    page = text(client, row.get_absolute_url())
    assert shown in page
    assert "viewer-config" not in page
    assert text(client, reverse("inference:list")).count(f'id="inference-{row.pk}"') == 1


def test_inference_live_part_ends_with_the_page(client: Client) -> None:
    row = InferenceFactory.create()
    url = reverse("inference:live", args=[row.pk])
    assert f'hx-get="{url}"' in text(client, url, headers=HTMX)
    client.post(reverse("inference:cancel", args=[row.pk]))
    end = client.get(url, headers=HTMX)
    assert end["HX-Retarget"] == "#content"
    client.post(reverse("inference:retry", args=[row.pk]))
    row.refresh_from_db()
    assert row.status == "queued"


def test_same_image_with_another_model(client: Client) -> None:
    key = storage.store_bytes("inferences/earlier/input.png", b"pixels").key
    row = completed_inference(input_image_s3_key=key, image_name="cells.png")
    other = CompletedModelFactory.create(s3_key="models/y/model.zip")
    url = reverse("inference:again", args=[row.pk])
    answer = client.post(url, {"model": other.pk})
    made = InferenceResult.objects.exclude(pk=row.pk).get()
    assert answer["Location"] == made.get_absolute_url()
    assert (made.model, made.image_name, made.status) == (other, "cells.png", "queued")
    assert default_storage.open(made.input_image_s3_key).read() == b"pixels"
    assert "no weights" in said(client.post(url, {"model": ModelFactory.create().pk}))[-1]
    default_storage.delete(key)
    assert "not in storage any more" in said(client.post(url, {"model": other.pk}))[-1]


def test_new_inference_offers_only_models_with_weights(client: Client) -> None:
    usable, queued = CompletedModelFactory.create(metrics={"dice": 0.5}), ModelFactory.create()
    page = text(client, f"{reverse('inference:create')}?model={usable.pk}")
    assert f'<option value="{usable.pk}" selected>' in page
    assert f'<option value="{queued.pk}"' not in page


def test_batch_page_lists_its_images(client: Client) -> None:
    row = batch(status="running", issues=[{"file": "notes.txt", "detail": "Not an image."}])
    done, failed = completed_inference(batch=row), InferenceFactory.create(batch=row, status="failed", error="why")
    live = reverse("inference:batch_live", args=[row.pk])
    page = text(client, row.get_absolute_url())
    for shown in (
        "notes.txt",
        "Not an image.",
        "when the last image is done.",
        reverse("inference-overlay", args=[done.pk]),
        live,
    ):
        assert shown in page, shown
    assert failed.get_absolute_url() in page
    assert "2 of 2 images done" in text(client, live, headers=HTMX)
    assert "1 done, 1 failed" in page
    InferenceBatch.objects.update(cancel_requested=True)
    assert "1 done, 1 cancelled or failed" in text(client, row.get_absolute_url())
    InferenceBatch.objects.update(status="completed", finished_at=timezone.now())
    assert reverse("inference-batch-download", args=[row.pk]) in client.get(live, headers=HTMX).content.decode()
    assert row.get_absolute_url() in text(client, reverse("inference:list"))
    assert client.post(reverse("inference:batch_delete", args=[row.pk])).status_code == 303
    assert not InferenceResult.objects.filter(pk__in=[done.pk, failed.pk]).exists()


def test_batch_page_shows_the_unsure_ones_first_when_asked(client: Client) -> None:
    row = batch()
    known = {"batch": row, "certainty_key": "x/certainty.png", "certainty_sha256": "0" * 64}
    for name, confidence in (("sure.png", 0.9), ("unsure.png", 0.2)):
        completed_inference(image_name=name, confidence=confidence, **known)
    InferenceFactory.create(image_name="waiting.png", batch=row)
    assert text(client, row.get_absolute_url()).index("unsure.png") > 0
    page = text(client, f"{row.get_absolute_url()}?order=unsure")
    places = [page.index(f'title="{name}.png"') for name in ("unsure", "sure", "waiting")]
    assert places == sorted(places)
    assert "confidence 0.200" in page


def test_inference_is_deleted(client: Client) -> None:
    row = completed_inference()
    assert client.post(reverse("inference:delete", args=[row.pk]))["Location"] == reverse("inference:list")
    assert not InferenceResult.objects.exists()
