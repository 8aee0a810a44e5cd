"""Later versions of a dataset: what changes is stored, what does not is shared, and nobody loses anything by a deletion."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from celery import current_app
from django.urls import reverse
from PIL import Image as PILImage
from rest_framework.test import APIClient

from datasets import services
from datasets.check import check
from datasets.models import Dataset
from medseg_site.demo import png
from medseg_site.shared.base.errors import MedSegError, WrongStateError
from medseg_site.shared.base.local_user import local_user
from medseg_site.shared.catalogue import declarations
from medseg_site.shared.recovery.rebuild import rebuild
from medseg_site.shared.recovery.sweep import collect
from medseg_site.tasks import remove_remains
from tests.datasets.test_check import ingest, objects, pairs, picture, zipped
from tests.e2e import drawings
from tests.pages import text
from tests.problems import find_problems

pytestmark = pytest.mark.django_db(transaction=True)


def next_version(user: Any, base: Dataset, files: dict[str, bytes] | None = None, **given: Any) -> Dataset:
    archive = zipped(files) if files else None
    dataset = services.create_version(user=user, base=base, archive=archive, **given)
    check(dataset.pk)
    dataset.refresh_from_db()
    return dataset


def others(*names: str, seed: int = 50) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for index, name in enumerate(names):
        image, labels = picture(seed + index)
        files |= {f"images/{name}.png": png(image), f"masks/{name}.png": png(labels * 100)}
    return files


def named(dataset: Dataset) -> list[str]:
    return list(dataset.samples.values_list("name", flat=True))


def test_a_version_adds_replaces_leaves_out_and_shares_the_rest(user: Any, own_media: Path) -> None:
    first = ingest(user, pairs(6))
    services.rename_class(user=local_user(), dataset=first, value=100, name="nucleus", color="#123456")
    before = objects(own_media)
    second = next_version(user, first, others("c1", "new"), leave_out=["c2"])
    assert (second.status, second.error, second.version, second.based_on) == ("ready", None, 2, 1)
    assert second.changes == {"kept": 4, "added": 1, "replaced": 1, "left_out": 1}
    assert named(second) == ["c0", "c1", "c3", "c4", "c5", "new"]
    assert str(second) == "set v2"
    kept = {name: first.samples.get(name=name) for name in ("c0", "c3", "c4", "c5")}
    for sample in second.samples.all():
        prefix = first.uuid if sample.name in kept else second.uuid
        assert {sample.image_key.split("/")[1], sample.mask_key.split("/")[1]} == {str(prefix)}
        if sample.name in kept:
            assert (sample.image_sha256, sample.split) == (kept[sample.name].image_sha256, kept[sample.name].split)
    assert [(row.name, row.color) for row in second.classes.all()][1] == ("nucleus", "#123456")
    assert second.fingerprint["n_cases"] == 6
    added = set(objects(own_media)) - set(before)
    assert sum(path.endswith("image.png") for path in added) == 2, added
    assert set(before) <= set(objects(own_media))
    assert named(first) == [f"c{index}" for index in range(6)]
    assert not find_problems()


def test_a_fingerprint_of_a_version_is_that_of_a_dataset_with_the_same_pairs(user: Any, own_media: Path) -> None:
    whole = ingest(user, {**pairs(4), **others("x")})
    version = next_version(user, ingest(user, pairs(4)), others("x"))
    assert version.fingerprint == whole.fingerprint


def test_the_same_archive_with_one_mask_mended_stores_only_that_pair(user: Any, own_media: Path) -> None:
    first = ingest(user, pairs(5))
    before = objects(own_media)
    labels = picture(3)[1]
    mended = {**pairs(5), "masks/c3.png": png(np.flipud(labels) * 100)}
    second = next_version(user, first, mended)
    assert second.changes == {"kept": 4, "added": 0, "replaced": 1, "left_out": 0}
    added = set(objects(own_media)) - set(before)
    # Image and mask of the one, and one object for the thumbnails of all.
    assert sum("/samples/" in path for path in added) == 3, added


@pytest.mark.parametrize("files", [None, {}])
def test_what_changes_nothing_is_refused(user: Any, own_media: Path, files: Any) -> None:
    first = ingest(user, pairs(4))
    if files is None:
        with pytest.raises(MedSegError, match="Give a ZIP"):
            services.create_version(user=user, base=first)
        with pytest.raises(MedSegError, match="no images with these names: c9"):
            services.create_version(user=user, base=first, leave_out=["c1", "c9"])
        return
    second = next_version(user, first, pairs(4))
    assert second.status == "error"
    assert second.error
    assert "would change nothing of version 1" in second.error


def test_a_bad_replacement_leaves_the_earlier_sample(user: Any, own_media: Path) -> None:
    first = ingest(user, pairs(4))
    second = next_version(user, first, {**others("new"), "images/c1.png": b"no picture", "masks/c1.png": b"nor this"})
    assert second.status == "ready"
    assert second.changes["kept"] == 4
    assert {issue["code"] for issue in second.issues} >= {"not_replaced"}
    assert second.samples.get(name="c1").image_key == first.samples.get(name="c1").image_key


def test_masks_in_colours_keep_their_values(user: Any, own_media: Path) -> None:
    red_blue = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)

    def drawn(*order: int) -> Any:
        return lambda labels: png(red_blue[np.array([0, *order])][np.minimum(labels, 2)])

    files = pairs(3, drawn(1, 2))
    first = ingest(user, files)
    assert first.status == "ready", first.error
    for row in first.classes.all():
        services.rename_class(user=local_user(), dataset=first, value=row.value, name=row.name, color="#777777")
    again = pairs(3, drawn(2, 1))  # the colours come in another order
    changed = {"images/z.png": again["images/c1.png"], "masks/z.png": again["masks/c1.png"]}
    second = next_version(user, first, changed)
    assert second.status == "ready", second.error
    codes = first.fingerprint["mask_codes"]
    assert second.fingerprint["mask_codes"] == codes
    as_red_blue, as_blue_red = (
        np.asarray(PILImage.open(own_media / second.samples.get(name=name).mask_key)) for name in ("c1", "z")
    )
    red, blue = codes["#ff0000"], codes["#0000ff"]
    assert (as_red_blue == red).any()
    assert np.array_equal(as_red_blue == red, as_blue_red == blue)


def test_colours_are_known_also_after_a_version_that_met_none(user: Any, own_media: Path) -> None:
    def drawn(labels: Any) -> bytes:
        return png(np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)[np.minimum(labels, 2)])

    second = next_version(user, ingest(user, pairs(4, drawn)), leave_out=["c3"])
    image, labels = picture(9)
    only_red = png(np.array([[0, 0, 0], [255, 0, 0]], np.uint8)[np.minimum(labels, 1)])
    third = next_version(user, second, {"images/z.png": png(image), "masks/z.png": only_red})
    red = third.fingerprint["mask_codes"]["#ff0000"]
    assert set(np.unique(np.asarray(PILImage.open(own_media / third.samples.get(name="z").mask_key)))) == {0, red}


def test_colours_cannot_join_numbers(user: Any, own_media: Path) -> None:
    image, labels = picture(9)
    red = png(np.array([[0, 0, 0], [255, 0, 0]], np.uint8)[np.minimum(labels, 1)])
    second = next_version(user, ingest(user, pairs(3)), {"images/z.png": png(image), "masks/z.png": red})
    assert second.status == "error"
    assert second.error
    assert "stores classes in another way" in second.error


def test_a_volume_does_not_take_a_pictures_place(user: Any, own_media: Path) -> None:
    first = ingest(user, pairs(4))
    volume = {"images/c1.nii.gz": drawings.nifti(drawings.ball(1)[0])}
    volume["masks/c1.nii.gz"] = drawings.nifti(drawings.ball(1)[1].astype(np.uint8))
    second = next_version(user, first, {**others("new"), **volume})
    assert second.changes == {"kept": 4, "added": 1, "replaced": 0, "left_out": 0}
    assert {issue["code"] for issue in second.issues} >= {"mixed_dimensions", "not_replaced"}


def test_a_sample_that_should_stay_is_never_dropped_in_silence(user: Any, own_media: Path) -> None:
    first = ingest(user, pairs(4))
    lost = own_media / first.samples.get(name="c2").mask_key
    content = lost.read_bytes()
    lost.unlink()
    second = next_version(user, first, others("new"))
    assert second.status == "error"
    assert second.error
    assert second.error.startswith("c2 of the earlier version cannot be read")
    lost.write_bytes(content)
    services.recheck_dataset(user=local_user(), dataset=second)
    check(second.pk)
    second.refresh_from_db()
    assert (second.status, second.file_count) == ("ready", 5)


def test_a_manifest_of_before_versions_is_of_a_family_of_its_own(user: Any, own_media: Path) -> None:
    first = ingest(user, pairs(3))
    path = own_media / "datasets" / str(first.uuid) / "manifest.json"
    document = json.loads(path.read_text())
    for name in ("family", "version", "based_on", "leave_out", "changes"):
        del document["row"][name]
    path.write_text(json.dumps(document))
    Dataset.objects.all().delete()
    assert rebuild().restored["datasets"] == 1
    assert Dataset.objects.get().family == first.uuid


@pytest.mark.parametrize("order", ["first goes first", "second goes first"])
def test_deleting_a_version_keeps_what_others_share(user: Any, own_media: Path, order: str) -> None:
    first = ingest(user, pairs(5))
    second = next_version(user, first, others("new"), leave_out=["c0"])
    one, other = (first, second) if order.startswith("first") else (second, first)
    services.delete_dataset(user=local_user(), dataset=one)
    assert not find_problems()
    for sample in other.samples.all():
        assert (own_media / sample.image_key).is_file()
        assert (own_media / sample.mask_key).is_file()
    assert not (own_media / one.s3_key).exists()
    assert collect(older_than_hours=0).count == 0  # nothing is left of the other one
    services.delete_dataset(user=local_user(), dataset=other)
    assert objects(own_media) == []


@pytest.mark.parametrize("order", ["first goes first", "second goes first"])
def test_a_large_version_is_removed_by_a_worker_but_for_what_others_share(
    user: Any, own_media: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    first = ingest(user, pairs(5))
    second = next_version(user, first, others("new"), leave_out=["c0"])
    one, other = (first, second) if order.startswith("first") else (second, first)
    monkeypatch.setattr(services, "MANY_SAMPLES", 4)
    monkeypatch.setattr(declarations, "MANY_KEYS", 3)  # so many names are looked up in another way
    keys = [
        *second.samples.values_list("image_key", flat=True),
        *second.samples.values_list("thumbnail_key", flat=True),
    ]
    assert declarations.named_by_any([*keys, "datasets/nobody's"]) == set(keys)
    sent: list[Any] = []
    monkeypatch.setattr(current_app, "send_task", lambda name, **more: sent.append((name, more["args"])))

    def deleted(dataset: Dataset) -> None:
        sent.clear()
        before = set(objects(own_media))
        services.delete_dataset(user=local_user(), dataset=dataset)
        assert before - set(objects(own_media)) == {f"datasets/{dataset.uuid}/manifest.json"}
        [(name, arguments)] = sent
        assert name == "medseg_site.tasks.remove_remains"
        remove_remains(*arguments)

    deleted(one)
    assert not find_problems()
    assert other.samples.count() == 5
    for sample in other.samples.all():
        assert (own_media / sample.image_key).is_file()
        assert (own_media / sample.mask_key).is_file()
    assert not (own_media / one.s3_key).exists()
    assert collect(older_than_hours=0).count == 0
    deleted(other)
    assert objects(own_media) == [], "also what the other one lent"


def test_a_large_dataset_is_removed_at_once_where_no_worker_can_be_called(
    user: Any, own_media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = ingest(user, pairs(3))
    monkeypatch.setattr(services, "MANY_SAMPLES", 2)

    def away(*arguments: Any, **more: Any) -> None:
        raise OSError("no broker")

    monkeypatch.setattr(current_app, "send_task", away)
    services.delete_dataset(user=local_user(), dataset=dataset)
    assert objects(own_media) == []


def test_a_base_stays_while_a_version_is_made_from_it(user: Any, own_media: Path) -> None:
    first = ingest(user, pairs(4))
    second = services.create_version(user=user, base=first, archive=zipped(others("new")))
    with pytest.raises(WrongStateError, match="newer version is being made"):
        services.delete_dataset(user=local_user(), dataset=first)
    with pytest.raises(WrongStateError, match="Only a ready dataset"):
        services.create_version(user=user, base=second, archive=zipped(others("newer")))
    check(second.pk)
    services.delete_dataset(user=local_user(), dataset=first)
    third = next_version(user, Dataset.objects.get(pk=second.pk), leave_out=["new"])
    assert (third.status, third.version, third.based_on, third.s3_key) == ("ready", 3, 2, "")
    assert named(third) == ["c0", "c1", "c2", "c3"]


def test_a_version_whose_base_is_gone_says_so_when_it_is_checked_again(user: Any, own_media: Path) -> None:
    first = ingest(user, pairs(2))
    second = next_version(user, first, leave_out=["c0"])
    assert second.status == "error"
    assert second.error
    assert "2 pairs are needed" in second.error
    services.delete_dataset(user=local_user(), dataset=first)
    services.recheck_dataset(user=local_user(), dataset=second)
    check(second.pk)
    second.refresh_from_db()
    assert second.status == "error"
    assert second.error
    assert "Version 1, which this one is based on, was deleted" in second.error


def test_rebuild_restores_versions_also_without_their_base(user: Any, own_media: Path) -> None:
    first = ingest(user, pairs(4))
    second = next_version(user, first, others("new"))
    services.delete_dataset(user=local_user(), dataset=first)
    wanted = list(second.samples.values())
    Dataset.objects.all().delete()
    report = rebuild()
    assert (report.restored["datasets"], report.skipped) == (1, [])
    assert list(Dataset.objects.get().samples.values()) == wanted
    assert not find_problems()


def test_new_samples_are_trained_on_and_a_test_part_stays_locked(user: Any, own_media: Path) -> None:
    first = ingest(user, pairs(30))
    held_out = dict(first.samples.exclude(split="train").values_list("name", "split"))
    assert "test" in held_out.values()
    second = next_version(user, first, others("n0", "n1", "n2"))
    assert dict(second.samples.exclude(split="train").values_list("name", "split")) == held_out
    assert set(second.samples.filter(name__startswith="n").values_list("split", flat=True)) == {"train"}


def test_over_the_api(client: Any, user: Any, own_media: Path) -> None:
    api = APIClient()
    first = ingest(user, pairs(3))
    url = reverse("dataset-versions", args=[first.pk])
    answer = api.post(url, {"archive": zipped(others("new")), "leave_out": "c0\nc1\n"}, format="multipart")
    assert answer.status_code == 202, answer.json()
    made = answer.json()
    assert (made["version"], made["based_on"], made["family"]) == (2, 1, str(first.uuid))
    check(made["id"])
    listed = api.get(url).json()["results"]
    assert [(row["version"], row["status"]) for row in listed] == [(2, "ready"), (1, "ready")]
    bad = api.post(url, {"leave_out": ["c7"]}, format="json")
    assert bad.status_code == 400
    assert bad.json()["errors"][0]["attr"] == "leave_out"
    whole = api.get(reverse("dataset-download", args=[made["id"]]))
    with zipfile.ZipFile(io.BytesIO(b"".join(whole.streaming_content))) as archive:  # type: ignore[attr-defined]  # of a streaming answer
        assert sorted(archive.namelist()) == ["images/c2.png", "images/new.png", "masks/c2.png", "masks/new.png"]
        assert archive.read("images/new.png") == others("new")["images/new.png"]
    as_it_came = api.get(reverse("dataset-download", args=[first.pk]))
    assert as_it_came["ETag"] == f'"{first.checksum}"'
    assert as_it_came["Content-Disposition"].endswith('"set.zip"')


def test_the_pages_lead_to_it(client: Any, user: Any, own_media: Path) -> None:
    first = ingest(user, pairs(3))
    sample = first.samples.get(name="c1")
    page = client.get(reverse("datasets:version", args=[first.pk]), {"leave_out": sample.pk})
    assert page.status_code == 200
    assert ">c1</textarea>" in page.content.decode()
    second = next_version(user, first, leave_out=["c1"])
    shown = text(client, second.get_absolute_url())
    assert "version 1: 1 left out, 2 unchanged" in shown
    assert "Versions" in shown
    assert client.get(reverse("datasets:version", args=[first.pk]), {"leave_out": "x"}).status_code == 200
