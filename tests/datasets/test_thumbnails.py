"""Thumbnails lie together in few objects, and each is found in its own."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.files.storage import default_storage
from django.urls import reverse
from PIL import Image as PILImage

from datasets import thumbnails
from datasets.models import Dataset, Sample
from medseg_site.demo import png
from medseg_site.shared import storage
from medseg_site.shared.verification import find_problems
from tests.datasets.test_ingestion import ingest, objects, pairs
from tests.datasets.test_versions import next_version

pytestmark = pytest.mark.django_db

GREYS = [20, 60, 100, 140, 180, 220]


def grey_pairs(*left_out: int) -> dict[str, bytes]:
    """Images of one grey each, by which a thumbnail tells whose it is; a corner of each mask is the structure."""
    mask = np.zeros((96, 96), np.uint8)
    mask[:24, :24] = 255
    files: dict[str, bytes] = {}
    for index, grey in enumerate(GREYS):
        image = np.full((96, 96), grey, np.uint8)
        image[index * 4 : index * 4 + 4] = 255 - grey  # no two are one picture
        files |= {f"images/c{index}.png": png(image), f"masks/c{index}.png": png(mask)}
    for index in left_out:
        del files[f"images/c{index}.png"], files[f"masks/c{index}.png"]
    return files


def seen(client: Any, sample: Sample) -> int:
    """The grey in the lower right of what a browser is sent."""
    answer = client.get(reverse("dataset-sample-thumbnail", args=[sample.dataset_id, sample.pk]))
    assert (answer.status_code, answer["Content-Type"]) == (200, "image/jpeg")
    assert answer["Cache-Control"] == "private, max-age=3600"
    content = b"".join(answer.streaming_content) if answer.streaming else answer.content
    return int(np.asarray(PILImage.open(io.BytesIO(content)).convert("L"))[-20:, -20:].mean())


def test_each_is_found_among_those_of_its_object(
    user: Any, client: Any, own_media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thumbnails, "TOGETHER", 4)
    client.force_login(user)
    dataset = ingest(user, grey_pairs())
    kept = [path for path in objects(own_media) if "/thumbnails/" in path]
    assert [path.rpartition("/")[2] for path in sorted(kept)] == ["000000.mjpeg", "000001.mjpeg"]  # four and two
    assert [seen(client, sample) for sample in dataset.samples.all()] == pytest.approx(GREYS, abs=4)
    assert not find_problems()


def test_those_of_samples_that_stay_are_not_stored_again(user: Any, client: Any, own_media: Path) -> None:
    client.force_login(user)
    first = ingest(user, grey_pairs(5))
    second = next_version(user, first, grey_pairs(0, 1, 2, 3, 4))
    assert [seen(client, sample) for sample in second.samples.all()] == pytest.approx(GREYS, abs=4)
    assert len({sample.thumbnail_key for sample in second.samples.all()}) == 2
    assert client.delete(reverse("dataset-detail", args=[first.pk])).status_code == 204
    assert [seen(client, sample) for sample in second.samples.all()] == pytest.approx(GREYS, abs=4)
    assert not find_problems()


def test_one_of_an_earlier_version_of_the_platform_is_an_object_of_its_own(
    user: Any, client: Any, own_media: Path
) -> None:
    client.force_login(user)
    dataset = ingest(user, grey_pairs())
    sample = dataset.samples.get(position=3)
    alone = f"datasets/{dataset.uuid}/samples/000003/thumbnail.jpg"
    with default_storage.open(sample.thumbnail_key) as together:
        together.seek(sample.thumbnail_offset)
        storage.store_bytes(alone, together.read(sample.thumbnail_size))
    Sample.objects.filter(pk=sample.pk).update(thumbnail_key=alone, thumbnail_offset=None, thumbnail_size=None)
    assert seen(client, sample) == pytest.approx(GREYS[3], abs=4)


@pytest.mark.parametrize("left", [None, 100])
def test_an_object_that_is_gone_or_cut_off_is_said_to_be_missing(
    user: Any, client: Any, own_media: Path, left: int | None
) -> None:
    client.force_login(user)
    dataset = ingest(user, grey_pairs())
    sample = dataset.samples.get(position=5)
    path = Path(default_storage.path(sample.thumbnail_key))
    whole = path.read_bytes()
    path.unlink()
    if left is not None:
        path.write_bytes(whole[:left])
    answer = client.get(reverse("dataset-sample-thumbnail", args=[dataset.pk, sample.pk]))
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, "no_object")


def test_a_check_whose_thumbnails_cannot_be_stored_is_not_ready(
    user: Any, own_media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = storage.store_bytes

    def refuse(key: str, data: bytes) -> storage.StoredObject:
        if "/thumbnails/" in key:
            raise RuntimeError(key)
        return store(key, data)

    monkeypatch.setattr(storage, "store_bytes", refuse)
    dataset = ingest(user, pairs(4))
    assert dataset.status == Dataset.WORDS.failed
    assert "RuntimeError" in (dataset.error or "")
    assert not dataset.samples.exists()
    assert not [path for path in objects(own_media) if "/samples/" in path]
