"""The pages of home and datasets: every state, forms and their refusals."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from datasets.models import Dataset
from models_app.models import SegmentationModel
from tests.factories import (
    CompletedModelFactory,
    DatasetFactory,
    ModelFactory,
    SampleFactory,
)
from tests.pages import HTMX, LISTS, NOTICE, completed_inference, said, text

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("name", LISTS)
def test_pages_without_any_row_say_what_to_do(client: Client, name: str) -> None:
    page = text(client, reverse(name))
    assert NOTICE in page
    assert "upload" in page.lower() or "train a model" in page.lower()


def test_home_offers_upload_and_the_synthetic_example(client: Client) -> None:
    page = text(client, "/")
    assert 'href="/datasets/new/"' in page
    assert "Try with a synthetic example" in page


def test_unknown_rows_are_404(client: Client) -> None:
    for url in (
        "/datasets/9/",
        "/datasets/9/live/",
        "/models/9/",
        "/inferences/9/",
        "/inferences/batches/9/",
        "/nothing/",
    ):
        assert client.get(url).status_code == 404, url


def test_ready_dataset_shows_samples_classes_and_facts(client: Client) -> None:
    dataset = DatasetFactory.create(
        fingerprint={
            "shape": {"minimum": [32, 32], "median": [32, 40], "maximum": [32, 48]},
            "spacing": {"minimum": [0.5, 0.5], "median": [0.5, 0.5], "maximum": [0.5, 0.5]},
            "intensity": {"low": 1.0, "high": 250.0, "mean": 90.0},
            "classes": [{"value": 255, "share": 0.125, "cases": 3, "pixels": 10}],
        }
    )
    sample = SampleFactory.create(dataset=dataset)
    page = text(client, dataset.get_absolute_url())
    assert reverse("dataset-sample-thumbnail", args=[dataset.pk, sample.pk]) in page
    assert "32 × 32 to 32 × 48" in page
    assert "0.5 × 0.5 mm" in page
    assert "12.5 %" in page
    assert f'btn-primary" href="/models/new/?dataset={dataset.pk}"' in page
    assert NOTICE in page


def test_samples_come_24_a_page(client: Client) -> None:
    dataset = DatasetFactory.create()
    SampleFactory.create_batch(30, dataset=dataset)
    assert text(client, dataset.get_absolute_url()).count("/thumbnail/") == 24
    assert text(client, dataset.get_absolute_url() + "?page=2").count("/thumbnail/") == 6
    assert text(client, dataset.get_absolute_url() + "?page=999").count("/thumbnail/") == 6


def test_dataset_in_error_shows_why_and_cannot_be_trained(client: Client) -> None:
    issues = [
        {"severity": "error", "code": "x", "file": f"images/{n}.png", "detail": f"<b>broken {n}</b>"} for n in range(60)
    ]
    dataset = DatasetFactory.create(status="error", error="No pair could be used.", issues=issues, issue_count=60)
    page = text(client, dataset.get_absolute_url())
    assert "No pair could be used." in page
    assert "Check again" in page
    assert f'btn-primary" href="/models/new/?dataset={dataset.pk}"' not in page
    assert "Fix what its check found, and upload it again." in page
    assert 'Issues <span class="text-secondary fw-normal ms-1">60</span>' in page
    assert "&lt;b&gt;broken 0&lt;/b&gt;" in page
    assert "broken 50" not in page
    assert "Show all (10 more)" in page
    assert "broken 59" in text(client, dataset.get_absolute_url() + "?issues=all")


def test_dataset_being_checked_polls_until_its_page_is_whole(client: Client) -> None:
    dataset = DatasetFactory.create(
        status="uploaded", dimensions=None, claim_token=uuid.uuid4(), progress={"done": 3, "total": 9, "fraction": 0.33}
    )
    live = reverse("datasets:live", args=[dataset.pk])
    assert f'hx-get="{live}"' in text(client, dataset.get_absolute_url())
    part = client.get(live, headers=HTMX)
    assert "3 of 9" in part.content.decode()
    assert "<html" not in part.content.decode()
    Dataset.objects.filter(pk=dataset.pk).update(
        status="ready", finished_at=timezone.now(), dimensions=2, claim_token=None
    )
    end = client.get(live, headers=HTMX)
    assert end["HX-Retarget"] == "#content"
    assert json.loads(end["HX-Trigger"])["medseg:toast"]["kind"] == "success"
    assert f'hx-get="{live}"' not in end.content.decode()
    assert client.get(live).status_code == 302


def test_only_active_rows_of_the_list_poll(client: Client) -> None:
    ready, active = DatasetFactory.create(), DatasetFactory.create(status="uploaded")
    page = text(client, reverse("datasets:list"))
    assert f'hx-get="{reverse("datasets:row", args=[active.pk])}"' in page
    assert f'hx-get="{reverse("datasets:row", args=[ready.pk])}"' not in page
    assert "waiting for its check" in text(client, reverse("datasets:row", args=[active.pk]))


def test_class_is_renamed_in_place(client: Client) -> None:
    dataset = DatasetFactory.create()
    item = dataset.classes.get(value=255)
    url = reverse("datasets:class", args=[dataset.pk, item.pk])
    part = client.post(url, {"name": " nucleus ", "color": "#AA00ff"}, headers=HTMX).content.decode()
    assert "Saved." in part
    item.refresh_from_db()
    assert (item.name, item.color) == ("nucleus", "#aa00ff")
    assert client.post(url, {"name": "cell", "color": "#aa00ff"}).status_code == 303


@pytest.mark.parametrize(
    ("name", "color", "why"),
    [
        ("", "#aa00ff", "required"),
        ("x" * 101, "#aa00ff", "100"),
        ("cell", "red", "hexadecimal"),
        ("\x07", "#aa00ff", "name"),
    ],
)
def test_class_names_and_colours_that_cannot_be(client: Client, name: str, color: str, why: str) -> None:
    dataset = DatasetFactory.create()
    item = dataset.classes.get(value=255)
    url = reverse("datasets:class", args=[dataset.pk, item.pk])
    part = client.post(url, {"name": name, "color": color}, headers=HTMX).content.decode()
    assert "invalid-feedback" in part
    assert why in part
    item.refresh_from_db()
    assert (item.name, item.color) == ("cell", "#f59f00")


def test_dataset_is_deleted_unless_a_training_reads_it(client: Client) -> None:
    dataset = DatasetFactory.create()
    model = ModelFactory.create(dataset=dataset)
    url = reverse("datasets:delete", args=[dataset.pk])
    assert "Not now: A training reads this dataset." in text(client, dataset.get_absolute_url())
    refused = client.post(url)
    assert "A training reads this dataset" in said(refused)[0]
    SegmentationModel.objects.filter(pk=model.pk).update(status="cancelled", finished_at=timezone.now())
    assert client.post(url)["Location"] == reverse("datasets:list")
    assert not Dataset.objects.exists()
    assert client.get(url).status_code == 405


def test_recheck_is_for_datasets_in_error(client: Client) -> None:
    broken, ready = DatasetFactory.create(status="error", error="why"), DatasetFactory.create()
    client.post(reverse("datasets:recheck", args=[broken.pk]))
    broken.refresh_from_db()
    assert (broken.status, broken.error) == ("uploaded", None)
    assert "Only error ones" in said(client.post(reverse("datasets:recheck", args=[ready.pk])))[-1]


def test_sample_page_configures_the_viewer(client: Client) -> None:
    dataset = DatasetFactory.create(dimensions=3)
    first, second = (SampleFactory.create(dataset=dataset, shape=[5, 16, 24]) for _ in range(2))
    page = text(client, reverse("datasets:sample", args=[dataset.pk, first.pk]))
    config = json.loads(page.split('id="viewer-config" type="application/json">')[1].split("</script>")[0])
    assert config["base"] == f"/api/v1/datasets/{dataset.pk}/samples/{first.pk}/"
    assert config["shape"] == [5, 16, 24]
    assert [item["value"] for item in config["classes"]] == [0, 255]
    assert "data-slice" in page
    assert reverse("datasets:sample", args=[dataset.pk, second.pk]) in page
    other = SampleFactory.create(dataset=DatasetFactory.create(), shape=[16, 24])
    assert "data-slice" not in text(client, reverse("datasets:sample", args=[other.dataset.pk, other.pk]))
    assert client.get(reverse("datasets:sample", args=[dataset.pk, other.pk])).status_code == 404


def test_home_follows_the_steps(client: Client) -> None:
    broken = DatasetFactory.create(status="error", error="Nothing fits.")
    assert broken.get_absolute_url() in text(client, "/")
    dataset = DatasetFactory.create()
    assert f"/models/new/?dataset={dataset.pk}" in text(client, "/")
    training = ModelFactory.create(dataset=dataset, status="training")
    page = text(client, "/")
    assert "Running now" in page
    assert training.get_absolute_url() in page
    model = CompletedModelFactory.create(dataset=dataset)
    assert f"/inferences/new/?model={model.pk}" in text(client, "/")
    result = completed_inference(model=model)
    assert reverse("inference-overlay", args=[result.pk]) in text(client, "/")


def test_home_live_part_changes_the_page_when_a_job_has_ended(client: Client) -> None:
    model = ModelFactory.create()
    part = client.get("/", {"running": f"model-{model.pk}"}, headers=HTMX)
    assert "<html" not in part.content.decode()
    SegmentationModel.objects.update(status="cancelled", finished_at=timezone.now())
    end = client.get("/", {"running": f"model-{model.pk}"}, headers=HTMX)
    assert end["HX-Retarget"] == "#content"
    assert json.loads(end["HX-Trigger"])["medseg:toast"] == {"text": f"{model}: cancelled.", "kind": "warning"}
    for nonsense in ("", "model-", "model-x", "nothing-3", "model-999", "-.-"):
        assert client.get("/", {"running": nonsense}, headers=HTMX).status_code == 200


def test_synthetic_example_starts_from_the_first_page(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = DatasetFactory.create(is_synthetic=True)
    asked: list[Any] = []

    def made(user: Any) -> Dataset:
        asked.append(user)
        row: Dataset = dataset
        return row

    monkeypatch.setattr("medseg_site.views.make_demo", made)
    assert client.get(reverse("demo")).status_code == 405
    assert client.post(reverse("demo"))["Location"] == dataset.get_absolute_url()
    assert len(asked) == 1
    assert "This dataset is synthetic" in text(client, dataset.get_absolute_url())
