"""How the platform reads masks that are no plain numbers, stores them, and lets a user say otherwise."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from PIL import Image as PILImage
from rest_framework.test import APIClient

from datasets.check import check
from datasets.models import Dataset
from tests.shared.conftest import zipped
from tests.synthetic import Array

pytestmark = pytest.mark.django_db(transaction=True)

SIDE = 32


def png(array: Array) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def labels(index: int) -> Array:
    """Two squares, 1 and 2, that move with the index."""
    found = np.zeros((SIDE, SIDE), np.uint8)
    found[4 : 10 + index, 4:10] = 1
    found[18:26, 16 : 22 + index] = 2
    return found


def archive(*masks: Array) -> SimpleUploadedFile:
    files: dict[str, bytes] = {}
    for index, mask in enumerate(masks):
        image = np.random.default_rng(index).integers(0, 255, (SIDE, SIDE)).astype(np.uint8)
        files |= {f"images/c{index}.png": png(image), f"masks/c{index}.png": png(mask)}
    return zipped(files)


def upload(api: APIClient, *masks: Array, **fields: Any) -> Dataset:
    answer = api.post("/api/v1/datasets/", {"name": "cells", "archive": archive(*masks), **fields}, format="multipart")
    assert answer.status_code == 202, answer.content
    check(answer.json()["id"])
    dataset = Dataset.objects.get(pk=answer.json()["id"])
    assert dataset.status == "ready", dataset.error
    return dataset


def stored(dataset: Dataset, own_media: Path) -> list[set[int]]:
    masks = [np.asarray(PILImage.open(own_media / sample.mask_key)) for sample in dataset.samples.all()]
    return [set(np.unique(mask).tolist()) for mask in masks]


def codes(dataset: Dataset) -> list[str]:
    return [issue["code"] for issue in dataset.issues]


def test_masks_of_two_people_are_stored_in_one_coding(api: APIClient, own_media: Path) -> None:
    one, full = ((labels(index) > 0) * np.uint8(value) for index, value in ((0, 1), (1, 255)))
    dataset = upload(api, one, full, full.copy())
    assert stored(dataset, own_media) == [{0, 255}] * 3
    assert [item["value"] for item in dataset.class_dicts()] == [0, 255]
    assert "merged_values" in codes(dataset)
    shown = api.get(f"/api/v1/datasets/{dataset.pk}/").json()
    assert shown["reading"] == {"background": 0, "ignore": [], "merge": [[255, 1]], "objects": False}


def test_what_the_first_look_stored_is_gone(api: APIClient, own_media: Path) -> None:
    one, full = ((labels(index) > 0) * np.uint8(value) for index, value in ((0, 1), (1, 255)))
    dataset = upload(api, one, full)
    files = {path.name for path in (own_media / "datasets" / str(dataset.uuid)).rglob("*") if path.is_file()}
    assert len([name for name in files if name.endswith(".mjpeg")]) == 1


def test_ignored_pixels_are_kept_and_shown_as_background(api: APIClient, own_media: Path) -> None:
    masks = [labels(index) for index in range(3)]
    for mask in masks:
        mask[12:15] = 255
    dataset = upload(api, *masks)
    assert stored(dataset, own_media) == [{0, 1, 2, 255}] * 3
    assert [item["value"] for item in dataset.class_dicts()] == [0, 1, 2]
    assert dataset.fingerprint["ignored"] == [255]
    sample = dataset.samples.all()[0]
    shown = api.get(f"/api/v1/datasets/{dataset.pk}/samples/{sample.pk}/labels/")
    assert np.array_equal(np.asarray(PILImage.open(io.BytesIO(shown.content))), np.where(masks[0] == 255, 0, masks[0]))


def test_numbers_of_objects_are_stored_and_shown_as_one_class(api: APIClient, own_media: Path) -> None:
    masks = []
    for index in range(3):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        places = np.random.default_rng(index).permutation(16)
        for number in range(6 + index):
            row, column = divmod(int(places[number]), 4)
            mask[1 + 8 * row : 5 + 8 * row, 1 + 8 * column : 4 + 8 * column] = number + 1
        masks.append(mask)
    dataset = upload(api, *masks)
    assert (dataset.kind, codes(dataset)) == ("instances", ["object_numbers"])
    assert stored(dataset, own_media) == [set(range(7 + index)) for index in range(3)]
    assert [(item["value"], item["name"]) for item in dataset.class_dicts()] == [(0, "background"), (1, "object")]
    sample = dataset.samples.all()[2]
    shown = api.get(f"/api/v1/datasets/{dataset.pk}/samples/{sample.pk}/labels/")
    assert np.array_equal(np.asarray(PILImage.open(io.BytesIO(shown.content))), masks[2] > 0)


@pytest.mark.parametrize("form", ["multipart text"])
def test_a_user_says_how_masks_are_read(api: APIClient, own_media: Path, form: str) -> None:
    masks = [labels(index) for index in range(3)]
    reading = {"background": 0, "ignore": [2]}
    dataset = upload(api, *masks, reading=json.dumps(reading))
    assert [item["value"] for item in dataset.class_dicts()] == [0, 1]
    assert dataset.fingerprint["ignored"] == [2]
    assert codes(dataset) == []


@pytest.mark.parametrize(
    "reading",
    ["nonsense", "[1]", '{"background": {}}', '{"colour": 1}', '{"merge": [1]}', '{"objects": "maybe"}', "[" * 9999],
)
def test_a_reading_that_cannot_be_read_is_refused(api: APIClient, reading: str) -> None:
    fields = {"name": "cells", "archive": archive(labels(0), labels(1)), "reading": reading}
    answer = api.post("/api/v1/datasets/", fields, format="multipart")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["attr"] == "reading"
    assert not Dataset.objects.exists()


def test_a_later_version_has_another_background(api: APIClient, own_media: Path) -> None:
    first = upload(api, *(labels(index) for index in range(3)))
    answer = api.post(f"/api/v1/datasets/{first.pk}/versions/", {"reading": {"background": 1}})
    assert answer.status_code == 202, answer.content
    check(answer.json()["id"])
    second = Dataset.objects.get(pk=answer.json()["id"])
    assert second.status == "ready", second.error
    assert [(item["value"], item["name"]) for item in second.class_dicts()] == [
        (1, "background"),
        (0, "class 0"),
        (2, "class 2"),
    ]
    assert second.reading["background"] == 1
    assert [entry["value"] for entry in second.fingerprint["classes"]] == [1, 0, 2]
    # It goes on being read so in the version after it.
    answer = api.post(f"/api/v1/datasets/{second.pk}/versions/", {"leave_out": ["c0"]})
    check(answer.json()["id"])
    third = Dataset.objects.get(pk=answer.json()["id"])
    assert (third.status, third.class_dicts()[0]["value"]) == ("ready", 1), third.error


@pytest.mark.slow
def test_the_page_changes_the_background_and_what_is_ignored(api: APIClient, client: Client, own_media: Path) -> None:
    masks = [labels(index) for index in range(3)]
    for mask in masks:
        mask[12:15] = 255
    first = upload(api, *masks)
    page = client.get(f"/datasets/{first.pk}/").content.decode()
    assert "Not labelled: neither learnt from nor scored" in page
    answer = client.post(f"/datasets/{first.pk}/reading/", {"background": 0, "ignore": [1]})
    second = Dataset.objects.exclude(pk=first.pk).get()
    assert answer["Location"] == f"/datasets/{second.pk}/"
    check(second.pk)
    second.refresh_from_db()
    assert second.status == "ready", second.error
    # 255 is a class now, and 1 is none any more.
    assert [item["value"] for item in second.class_dicts()] == [0, 2, 255]
    assert second.fingerprint["ignored"] == [1]


@pytest.mark.parametrize(
    "fields",
    [{}, {"background": "x"}, {"background": 7}, {"background": 0, "ignore": [0]}, {"background": 0, "ignore": [9]}],
)
def test_the_page_refuses_what_is_no_reading(api: APIClient, client: Client, own_media: Path, fields: Any) -> None:
    first = upload(api, *(labels(index) for index in range(2)))
    answer = client.post(f"/datasets/{first.pk}/reading/", fields, follow=True)
    assert "Choose one value as the background" in answer.content.decode()
    assert Dataset.objects.count() == 1


@pytest.mark.parametrize("in_colours", [False, True])
def test_a_reading_that_changes_nothing_makes_no_version(
    api: APIClient, client: Client, own_media: Path, in_colours: bool
) -> None:
    masks = [labels(index) for index in range(2)]
    if in_colours:
        table = np.array([[255, 255, 255], [200, 0, 0], [0, 0, 200]], np.uint8)
        masks = [table[mask] for mask in masks]
    first = upload(api, *masks)
    page = client.post(f"/datasets/{first.pk}/reading/", {"background": 0}, follow=True)
    assert "read so already" in page.content.decode()
    shown = api.get(f"/api/v1/datasets/{first.pk}/").json()["reading"]
    answer = api.post(f"/api/v1/datasets/{first.pk}/versions/", {"reading": shown})
    assert (answer.status_code, answer.json()["errors"][0]["attr"]) == (400, "reading")
    assert Dataset.objects.count() == 1
