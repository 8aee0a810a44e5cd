"""Uploads in parts while storage is the local folder: what is kept, what is refused, and what is cleaned up."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
import uuid
from collections import namedtuple
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from rest_framework.test import APIClient

from datasets.check import check
from datasets.models import Dataset
from medseg_site.shared.recovery.rebuild import rebuild
from medseg_site.shared.recovery.sweep import collect
from medseg_site.shared.recovery.verify import verify
from medseg_site.shared.storage import objects as storage
from tests.factories import project_of
from tests.uploads.conftest import PART, Sender, big_zip
from uploads.cleaning import clean
from uploads.models import Upload

pytestmark = pytest.mark.django_db


def media(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def code(answer: Any) -> str:
    return str(answer.json()["errors"][0]["code"])


def test_parts_in_any_order_become_a_dataset_without_a_second_copy(sender: Sender, own_media: Path) -> None:
    answer = sender.create()
    assert answer.status_code == 201, answer.content
    upload = sender.upload
    assert answer["Location"].endswith(f"/api/v1/uploads/{upload['id']}/")
    assert upload["file_name"] == "big set.zip"
    assert upload["part_count"] == 4
    assert upload["state"] == "open"
    tags = sender.send([4, 2]) + sender.send([1, 3])
    assert sorted(sender.arrived()) == [1, 2, 3, 4]
    inode = (own_media / "uploads" / upload["id"] / "archive.zip").stat().st_ino
    assert sender.complete(*tags).json()["state"] == "complete"

    made = sender.make_dataset()
    assert made.status_code == 202, made.content
    dataset = Dataset.objects.get(pk=made.json()["id"])
    stored = own_media / dataset.s3_key
    assert stored.stat().st_ino == inode, "the file was copied"
    assert stored.read_bytes() == sender.content
    assert media(own_media) == {dataset.s3_key}
    assert (dataset.archive_name, dataset.checksum) == ("big set.zip", "")

    check(dataset.pk)
    dataset.refresh_from_db()
    assert (dataset.status, dataset.error) == ("ready", None)
    assert dataset.checksum == hashlib.sha256(sender.content).hexdigest()
    assert sender.api.get(sender.path).json()["state"] == "used"


def test_what_has_arrived_survives_and_only_the_rest_is_sent(sender: Sender) -> None:
    sender.create()
    sender.send([1, 3])
    arrived = sender.arrived()  # nothing of the upload lives in the process: a restarted one reads the same
    assert {n: part["Size"] for n, part in arrived.items()} == {1: PART, 3: PART}
    assert arrived[3]["sha256"] == hashlib.sha256(sender.part(3)).hexdigest()
    early = sender.complete()
    assert (early.status_code, code(early)) == (400, "missing_parts")
    assert "2, 4" in early.json()["errors"][0]["detail"]
    sender.send([2, 4])
    assert sender.complete().status_code == 200
    assert sender.complete().status_code == 200, "a second time, after a lost answer"


def test_a_damaged_part_is_refused_and_does_not_count(sender: Sender) -> None:
    sender.create()
    url = sender.sign([1])[1]
    answer = sender.put(url, bytes(PART))
    assert (answer.status_code, code(answer)) == (400, "bad_checksum")
    assert sender.arrived() == {}
    sender.send([1])
    assert list(sender.arrived()) == [1]


def test_a_part_that_is_sent_again_counts_only_when_it_is_whole(sender: Sender) -> None:
    sender.create()
    sender.send([1])
    url = sender.sign([1])[1]
    answer = sender.put(url, b"short")
    assert (answer.status_code, code(answer)) == (400, "wrong_size")
    assert list(sender.arrived()) == [1], "refused by its length before anything was touched"


@pytest.mark.parametrize(
    ("body", "status", "attr"),
    [
        ({"size": 0}, 400, "size"),
        ({"size": 10**15}, 413, None),
        ({"size": "many"}, 400, "size"),
        ({"purpose": "holiday"}, 400, "purpose"),
        ({"sha256": "abc"}, 400, "sha256"),
        ({"file_name": ""}, 400, "file_name"),
    ],
)
def test_what_cannot_be_begun_is_refused(sender: Sender, body: dict[str, Any], status: int, attr: str | None) -> None:
    answer = sender.create(**body)
    assert answer.status_code == status, answer.content
    assert answer.json()["errors"][0]["attr"] == attr
    assert not Upload.objects.exists()


def test_wrong_parts_are_refused(sender: Sender) -> None:
    sender.create()
    tags = sender.send(sender.numbers)
    for numbers in ([], [9], [0], list(range(1, 102))):
        assert sender.api.post(f"{sender.path}sign/", {"part_numbers": numbers}).status_code == 400
    sums = {"part_numbers": [1], "checksums": {"1": "xyz"}}
    assert code(sender.api.post(f"{sender.path}sign/", sums)) == "invalid_checksum"
    assert sender.put(f"{sender.path}parts/9/", b"x").status_code == 400
    wrong = sender.complete({**tags[0], "ETag": "0"}, *tags[1:])
    assert (wrong.status_code, code(wrong)) == (400, "wrong_etag")
    assert sender.complete(*tags).status_code == 200


def test_in_the_wrong_state_it_is_409(sender: Sender) -> None:
    sender.create()
    assert sender.make_dataset().status_code == 409, "parts are missing"
    sender.send(sender.numbers)
    url = sender.sign([1])[1]
    assert sender.complete().status_code == 200
    assert sender.put(url, sender.part(1)).status_code == 409
    assert sender.api.post(f"{sender.path}sign/", {"part_numbers": [1]}).status_code == 409
    first, second = sender.make_dataset(), sender.make_dataset()
    assert (first.status_code, second.json()["id"]) == (202, first.json()["id"]), "asked again after a lost answer"
    assert Dataset.objects.count() == 1
    assert sender.api.delete(sender.path).status_code == 409
    sender.api.delete(f"/api/v1/datasets/{first.json()['id']}/")
    assert sender.make_dataset().status_code == 409, "its file is gone with the dataset"


def test_a_file_that_is_no_zip_is_refused_and_removed(api: APIClient, settings: Any, own_media: Path) -> None:
    settings.MEDSEG_UPLOAD_PART_BYTES = PART
    sender = Sender(api, os.urandom(PART + 17))
    sender.create()
    sender.send([1, 2])
    answer = sender.complete()
    assert (answer.status_code, code(answer)) == (400, "not_a_zip")
    assert media(own_media) == set()
    assert sender.api.get(sender.path).status_code == 404


def test_the_check_refuses_a_file_that_is_not_what_was_sent(sender: Sender, own_media: Path) -> None:
    sender.send_all()
    pk = sender.make_dataset().json()["id"]
    dataset = Dataset.objects.get(pk=pk)
    with (own_media / dataset.s3_key).open("r+b") as file:
        file.seek(2 * PART + 5)
        file.write(b"rot")
    check(pk)
    dataset.refresh_from_db()
    assert dataset.status == "error"
    assert "Part 3 of the archive was damaged" in (dataset.error or "")
    assert media(own_media) == set()


def test_the_whole_files_checksum_is_held_against_what_was_said(sender: Sender) -> None:
    sender.create(sha256="0" * 64)
    sender.complete(*sender.send(sender.numbers))
    pk = sender.make_dataset().json()["id"]
    check(pk)
    assert "its checksum is not the announced one" in (Dataset.objects.get(pk=pk).error or "")


def test_a_full_disk_is_said_at_the_start_and_in_the_middle(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 0))
        answer = sender.create()
    assert (answer.status_code, code(answer)) == (507, "disk_full")
    assert not Upload.objects.exists()
    sender.create()
    url = sender.sign([1])[1]

    def full(*given: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert sender.put(url, sender.part(1)).status_code == 507
    assert sender.arrived() == {}
    sender.send(sender.numbers)
    assert sender.complete().status_code == 200


def test_stopping_removes_everything(sender: Sender, own_media: Path) -> None:
    sender.create()
    sender.send([1])
    assert sender.api.delete(sender.path).status_code == 204
    assert media(own_media) == set()
    assert sender.api.get(sender.path).status_code == 404


def test_what_nobody_goes_on_with_is_cleaned(sender: Sender, own_media: Path, settings: Any) -> None:
    settings.MEDSEG_UPLOAD_KEEP_HOURS = 48
    used = Sender(sender.api, sender.content)
    used.send_all()
    used.make_dataset()
    whole = Sender(sender.api, sender.content)
    whole.send_all()
    begun = Sender(sender.api, sender.content)
    begun.create()
    begun.send([1])
    fresh = Sender(sender.api, sender.content)
    fresh.create()
    assert clean() == 0
    old = timezone.now() - timedelta(hours=49)
    Upload.objects.exclude(uuid=fresh.upload["id"]).update(updated_at=old)
    assert clean() == 2
    assert [str(upload.uuid) for upload in Upload.objects.all()] == [fresh.upload["id"]]
    assert media(own_media) == {Dataset.objects.get().s3_key, f"uploads/{fresh.upload['id']}/archive.zip"}


def test_a_move_that_was_cut_off_is_done_again_or_cleaned(sender: Sender, own_media: Path) -> None:
    sender.send_all()
    upload = Upload.objects.get()
    (own_media / upload.key).parent.mkdir(parents=True)
    (own_media / "uploads" / str(upload.uuid) / "archive.zip").rename(own_media / upload.key)  # then killed
    assert sender.make_dataset().status_code == 202
    assert (own_media / upload.key).read_bytes() == sender.content

    other = Sender(sender.api, sender.content)
    other.send_all()
    moved = Upload.objects.get(uuid=other.upload["id"])
    (own_media / moved.key).parent.mkdir(parents=True)
    (own_media / "uploads" / str(moved.uuid) / "archive.zip").rename(own_media / moved.key)
    Upload.objects.filter(pk=moved.pk).update(updated_at=timezone.now() - timedelta(days=9))
    clean()
    assert media(own_media) == {upload.key}


def test_each_user_has_their_own_uploads(sender: Sender, settings: Any) -> None:
    settings.MEDSEG_SINGLE_USER = False
    anna, bert = (User.objects.create_user(name) for name in ("anna", "bert"))
    sender.api.force_authenticate(anna)
    sender.send_all()
    sender.api.force_authenticate(bert)
    for path in ("", "parts/"):
        assert sender.api.get(sender.path + path).status_code == 404
    assert sender.put(f"{sender.path}parts/1/", sender.part(1)).status_code == 404
    assert sender.api.delete(sender.path).status_code == 404
    answer = sender.make_dataset()
    assert (answer.status_code, code(answer)) == (400, "no_such_upload")
    assert sender.api.get("/api/v1/uploads/").json()["count"] == 0


def test_a_batch_archive_is_none_for_a_dataset(api: APIClient, settings: Any) -> None:
    sender = Sender(api, big_zip(1000), purpose="batch")
    sender.send_all()
    assert code(sender.make_dataset()) == "no_such_upload"


def test_the_admin_shows_and_stops_uploads(client: Client, sender: Sender, own_media: Path) -> None:
    sender.create()
    sender.send([1])
    upload = Upload.objects.get()
    url = reverse("admin:uploads_upload_changelist")
    assert "1 of 4" in client.get(url).content.decode()
    assert client.get(reverse("admin:uploads_upload_change", args=[upload.pk])).status_code == 200
    data = {"action": "delete_selected", "_selected_action": [upload.pk], "post": "yes"}
    assert client.post(url, data).status_code == 302
    assert (Upload.objects.count(), media(own_media)) == (0, set())


def test_garbage_collection_spares_what_an_upload_brought(own_media: Path) -> None:
    columns = {"purpose": "dataset", "file_name": "a.zip", "size": 9, "part_size": 9}
    upload = Upload.objects.create(project=project_of(), state=Upload.COMPLETE, **columns)
    arrived = storage.store_bytes(upload.key, b"on its way")
    orphan = storage.store_bytes(f"datasets/{uuid.uuid4()}/archive.zip", b"nobody's")
    swept: list[str] = []
    report = collect(older_than_hours=-1, delete=True, on_object=lambda item: swept.append(item.key))
    assert swept == [orphan.key]
    assert "uploads" not in report.unknown
    assert storage.fetch(arrived.key).read_bytes() == b"on its way"


def test_uploads_whose_rows_were_lost_with_the_database_are_garbage(sender: Sender, own_media: Path) -> None:
    """Nothing restores them: a rebuilt catalogue knows of no upload."""
    sender.create()
    sender.send([1, 3])
    lost = Path(f"uploads/{sender.upload['id']}/archive.zip")
    Upload.objects.all().delete()
    sender.create()
    sender.send([2])
    kept = f"uploads/{sender.upload['id']}/archive.zip"
    rebuild()
    assert media(own_media) == {str(lost), kept}
    assert verify(quick=True).orphans == 1
    assert (collect().count, collect().too_young) == (0, 1)
    for name in (lost, kept):
        os.utime(own_media / name, (time.time() - 25 * 3600,) * 2)
    looked_at: list[tuple[str, int]] = []
    report = collect(delete=True, on_step=lambda collection, owners: looked_at.append((collection, owners)))
    assert (report.count, report.bytes) == (1, len(sender.content))
    assert ("uploads", 2) in looked_at
    assert media(own_media) == {kept}, "that of a row stays, however long it rests"
    assert not (own_media / lost).parent.exists()
    assert verify(quick=True).orphans == 0
