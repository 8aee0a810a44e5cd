"""Thumbnails lie together in few objects, and each is found in its own."""

from __future__ import annotations

import gzip
import io
import json
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
from medseg_site.shared.storage import objects as storage
from tests.datasets.test_check import ingest, objects, pairs
from tests.datasets.test_versions import next_version
from tests.problems import find_problems

pytestmark = pytest.mark.django_db(transaction=True)

GREYS = [20, 60, 100, 140, 180, 220]
YOUNGER = ("thumbnail_offset", "thumbnail_size")  # than the first manifests


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
    assert [path.rpartition("/")[2].partition("-")[0] for path in sorted(kept)] == ["000000", "000001"]  # four and two
    assert [seen(client, sample) for sample in dataset.samples.all()] == pytest.approx(GREYS, abs=4)
    assert not find_problems()


def test_nothing_of_a_sample_that_was_left_out_outlives_its_version(user: Any, client: Any, own_media: Path) -> None:
    client.force_login(user)
    first = ingest(user, grey_pairs(5))
    second = next_version(user, first, grey_pairs(0, 1, 2, 3, 4), leave_out=["c0"])
    assert second.changes == {"kept": 4, "added": 1, "replaced": 0, "left_out": 1}
    assert client.delete(reverse("dataset-detail", args=[first.pk])).status_code == 204
    assert [seen(client, sample) for sample in second.samples.all()] == pytest.approx(GREYS[1:], abs=4)
    [together] = [path for path in objects(own_media) if "/thumbnails/" in path]
    assert (own_media / together).stat().st_size == sum(sample.thumbnail_size or 0 for sample in second.samples.all())
    assert not find_problems()


def test_a_pair_that_came_again_unchanged_has_its_thumbnail_too(user: Any, client: Any, own_media: Path) -> None:
    client.force_login(user)
    first = ingest(user, grey_pairs(5))
    second = next_version(user, first, grey_pairs())
    assert second.changes == {"kept": 5, "added": 1, "replaced": 0, "left_out": 0}
    assert [seen(client, sample) for sample in second.samples.all()] == pytest.approx(GREYS, abs=4)


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


def test_a_manifest_that_knows_of_no_offsets_yet_says_the_same(user: Any, own_media: Path) -> None:
    dataset = ingest(user, pairs(4))
    Sample.objects.filter(dataset=dataset).update(thumbnail_offset=None, thumbnail_size=None)
    path = own_media / f"datasets/{dataset.uuid}/samples.jsonl.gz"
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    earlier = [{name: said for name, said in line.items() if name not in YOUNGER} for line in lines]
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in earlier).encode()))
    assert not find_problems()
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in earlier[:-1]).encode()))
    assert [problem.code for problem in find_problems()] == ["stale_parts"]


def test_an_object_that_is_gone_is_one_problem(user: Any, own_media: Path) -> None:
    dataset = ingest(user, pairs(4))
    [key] = set(dataset.samples.values_list("thumbnail_key", flat=True))
    (own_media / key).unlink()
    assert [(problem.code, problem.key) for problem in find_problems()] == [("missing_object", key)]


@pytest.mark.parametrize("together", [2, 64])  # noticed on the way, or in the end
def test_a_check_whose_thumbnails_cannot_be_stored_is_not_ready(
    user: Any, own_media: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(thumbnails, "TOGETHER", together)
    store = storage.store_bytes

    def refuse(key: str, data: bytes) -> storage.StoredObject:
        if "/thumbnails/" in key:
            raise RuntimeError(key)
        return store(key, data)

    monkeypatch.setattr(storage, "store_bytes", refuse)
    dataset = ingest(user, pairs(8))
    assert dataset.status == Dataset.WORDS.failed
    assert "RuntimeError" in (dataset.error or "")
    assert not dataset.samples.exists()
    assert not [path for path in objects(own_media) if "/samples/" in path]
