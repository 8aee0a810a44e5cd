"""Storage against the rows: what is wrong is named, what can be mended is, and what no row owns is swept."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import current_app
from django.core.files.storage import default_storage
from django.core.management import CommandError, call_command
from django.db import transaction
from django.utils import timezone
from rest_framework.test import APIClient

from datasets.models import Dataset
from inference.models import InferenceResult
from medseg_site.shared.base.local_user import local_user
from medseg_site.shared.catalogue import manifests
from medseg_site.shared.recovery.sweep import collect
from medseg_site.shared.recovery.verify import mend_recent_manifests, verify
from medseg_site.shared.storage import objects as storage
from models_app.models import SegmentationModel
from models_app.services import delete_model
from tests.factories import DatasetFactory, ModelFactory
from tests.problems import find_problems
from tests.shared.conftest import Filled

HOUR = 3600


def test_problems_are_named_and_manifests_mended(filled: Filled) -> None:
    assert find_problems() == []
    sample = filled.ready.samples.order_by("pk")[1]
    found = InferenceResult.objects.filter(status="completed").order_by("pk")[0]
    storage.store_bytes(sample.image_key, b"another picture")
    storage.store_bytes(filled.completed.s3_key, b"")
    default_storage.delete(found.output_image_s3_key)
    Dataset.objects.filter(pk=filled.ready.pk).update(description="changed behind everybody's back")
    default_storage.delete(f"inferences/{filled.queued.uuid}/manifest.json")
    filled.ready.samples.filter(pk=sample.pk).update(split="test")

    damage = {
        ("damaged_object", sample.image_key),
        ("empty_object", filled.completed.s3_key),
        ("missing_object", found.output_image_s3_key),
    }
    stale = {
        ("stale_manifest", f"datasets/{filled.ready.uuid}/manifest.json"),
        ("stale_parts", f"datasets/{filled.ready.uuid}/samples.jsonl.gz"),
        ("missing_manifest", f"inferences/{filled.queued.uuid}/manifest.json"),
    }
    assert {(problem.code, problem.key) for problem in find_problems()} == damage | stale
    quick = {(problem.code, problem.key) for problem in find_problems(quick=True)}
    assert quick == (damage | stale) - {("damaged_object", sample.image_key)}


def test_repair_mends_manifests_only_and_the_command_says_so(filled: Filled) -> None:
    Dataset.objects.filter(pk=filled.ready.pk).update(description="changed")
    default_storage.delete(f"models/{filled.completed.uuid}/manifest.json")
    out = io.StringIO()
    call_command("verify_storage", "--repair", "--json", stdout=out)
    report = json.loads(out.getvalue())
    assert report["clean"]
    assert {(problem["code"], problem["mended"]) for problem in report["problems"]} == {
        ("stale_manifest", True),
        ("missing_manifest", True),
    }
    out = io.StringIO()
    call_command("verify_storage", stdout=out)
    assert "0 problems, 0 mended; 0 objects of no row" in out.getvalue()
    default_storage.delete(filled.completed.s3_key)
    with pytest.raises(CommandError, match="1 problem left"):
        call_command("verify_storage", "--repair", stdout=io.StringIO())


def test_garbage_is_what_no_row_owns_and_old_enough(filled: Filled, media: str) -> None:
    def everything() -> set[str]:
        return {item.key for name in storage.collections() for item in storage.objects_below(name)}

    own = everything()
    garbage = {
        "datasets/11111111-1111-4111-8111-111111111111/archive.zip",
        "inferences/22222222-2222-4222-8222-222222222222/input.png",
        f"datasets/{filled.ready.uuid}/samples/000999/image.png",
        f"models/{filled.completed.uuid}/checkpoints/latest.safetensors",
    }
    # Another row may name an object of an owner that is gone; a training in progress owns what it will name at its end.
    shared = "datasets/33333333-3333-4333-8333-333333333333/image.png"
    filled.ready.samples.filter(position=0).update(image_key=shared)
    kept = {shared, f"models/{filled.working.uuid}/checkpoints/latest.safetensors", "elsewhere/of-another-program"}
    before = filled.ready.samples.model.objects.get(dataset=filled.ready, position=0)
    for key in garbage | kept:
        storage.store_bytes(key, b"12345678")
    orphaned_image = {key for key in own if key.endswith("samples/000000/image.png") and str(filled.ready.uuid) in key}
    garbage |= orphaned_image
    assert before.image_key == shared

    assert collect().too_young == len(garbage)
    assert collect().count == 0
    found: list[str] = []
    told = collect(older_than_hours=0, on_object=lambda item: found.append(item.key))
    assert set(found) == garbage
    assert (told.count, told.unknown) == (len(garbage), ["elsewhere"])
    assert everything() == own | garbage | kept, "a dry run changed something"
    swept = collect(older_than_hours=0, delete=True)
    assert (swept.count, swept.bytes) == (told.count, told.bytes)
    assert everything() == own - orphaned_image | kept
    assert collect(older_than_hours=0).count == 0
    assert verify(quick=True).orphans == 0


def test_a_walk_is_cut_into_chunks_by_owners_and_by_objects(media: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"a": 1, "b": 1, "c": 7, "d": 1, "e": 1, "f": 1}
    for owner, count in counts.items():
        for number in range(count):
            storage.store_bytes(f"things/{owner}/{number}", b"x")
    monkeypatch.setattr(storage, "OWNERS_AT_ONCE", 3)
    monkeypatch.setattr(storage, "OBJECTS_AT_ONCE", 5)
    chunks = list(storage.owners_in_chunks("things"))
    assert [list(some) for some in chunks] == [["a", "b", "c"], ["d", "e", "f"]]
    monkeypatch.setattr(storage, "OWNERS_AT_ONCE", 100)
    chunks = list(storage.owners_in_chunks("things"))
    assert [list(some) for some in chunks] == [["a", "b", "c"], ["d", "e", "f"]], "closed by the objects of c"
    assert {owner: len(objects) for some in chunks for owner, objects in some.items()} == counts
    assert list(storage.owners_in_chunks("nothing")) == []


def test_what_is_found_does_not_depend_on_where_chunks_end(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = "11111111-1111-4111-8111-111111111111"
    garbage = {f"{collection}/{gone}/{number}" for collection in ("datasets", "inferences") for number in range(3)}
    shared = f"datasets/{gone}/image.png"  # of a version that was deleted: another owner's row names it
    for key in {*garbage, shared}:
        storage.store_bytes(key, b"12345678")
    filled.ready.samples.filter(position=0).update(
        image_key=shared, image_sha256=hashlib.sha256(b"12345678").hexdigest()
    )

    def found() -> tuple[Any, Any, set[str]]:
        keys: list[str] = []
        collect(older_than_hours=0, on_object=lambda item: keys.append(item.key))
        assert len(keys) == len(set(keys))
        report = verify()
        return (report.rows, report.objects, report.orphans), report.problems, set(keys)

    whole = found()
    assert garbage < whole[2]
    assert shared not in whole[2]
    for owners, objects in ((1, 10_000), (2, 10_000), (200, 1), (200, 4)):
        monkeypatch.setattr(storage, "OWNERS_AT_ONCE", owners)
        monkeypatch.setattr(storage, "OBJECTS_AT_ONCE", objects)
        assert found() == whole


@pytest.mark.django_db
def test_the_local_folder_loses_old_parts_and_emptied_folders(own_media: Path) -> None:
    running = ModelFactory.create()
    part = own_media / f"models/{running.uuid}/.model.zip.0123.part"
    young = own_media / f"models/{running.uuid}/.model.zip.4567.part"
    old = own_media / "datasets/11111111-1111-4111-8111-111111111111/samples/000000/image.png"
    for path in (part, young, old):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    for path in (part, old):
        os.utime(path, (time.time() - 25 * HOUR,) * 2)
    out = io.StringIO()
    call_command("collect_garbage", stdout=out)
    assert "Would delete (--delete does it): 2 objects" in out.getvalue()
    call_command("collect_garbage", "--delete", stdout=out)
    assert (part.exists(), young.exists(), (own_media / "datasets").exists()) == (False, True, True)
    assert list((own_media / "datasets").iterdir()) == []


@pytest.mark.parametrize("media", ["local"], indirect=True)
def test_manifests_follow_edits_and_ends(filled: Filled, api: APIClient) -> None:
    key = f"datasets/{filled.ready.uuid}/manifest.json"
    api.patch(f"/api/v1/datasets/{filled.ready.pk}/classes/0/", {"name": "outside"}, format="json")
    assert [item["name"] for item in manifests.read(key)["classes"]] == ["outside", "nucleus"]
    api.post(f"/api/v1/inferences/{filled.queued.pk}/cancel/")
    assert manifests.read(f"inferences/{filled.queued.uuid}/manifest.json")["row"]["status"] == "cancelled"
    failed = InferenceResult.objects.get(status="failed")
    said = manifests.read(f"inferences/{failed.uuid}/manifest.json")["row"]
    assert (said["status"], said["error"]) == ("failed", failed.error)
    delete_model(user=local_user(), model=filled.orphaned)
    assert not default_storage.exists(f"models/{filled.orphaned.uuid}/manifest.json")
    assert find_problems() == []


@pytest.mark.django_db
def test_what_a_kill_left_between_a_row_and_its_manifest_is_mended(own_media: Path) -> None:
    long_ago = timezone.now() - timedelta(days=40)
    ended = ModelFactory.create(status="failed", error="before", due_at=long_ago, finished_at=long_ago)
    manifests.store(ended)
    SegmentationModel.objects.filter(pk=ended.pk).update(error="because")
    fresh = ModelFactory.create(due_at=timezone.now())  # its manifest is on its way
    key = f"models/{ended.uuid}/manifest.json"
    assert mend_recent_manifests(since_seconds=900) == 0
    assert mend_recent_manifests() == 1
    assert manifests.read(key)["row"]["error"] == "because"
    assert not default_storage.exists(f"models/{fresh.uuid}/manifest.json")
    assert mend_recent_manifests() == 0
    minutes_ago = timezone.now() - timedelta(minutes=5)
    SegmentationModel.objects.filter(pk=ended.pk).update(error="for another reason", finished_at=minutes_ago)
    assert mend_recent_manifests(since_seconds=900) == 1
    assert manifests.read(key)["row"]["error"] == "for another reason"


@pytest.mark.django_db
def test_a_manifest_is_not_left_behind_by_a_row_that_was_deleted(own_media: Path) -> None:
    row = DatasetFactory.create()
    manifests.store(row)
    Dataset.objects.filter(pk=row.pk).delete()
    manifests.refresh(Dataset, row.uuid)
    assert not default_storage.exists(f"datasets/{row.uuid}/manifest.json")


@pytest.mark.django_db(transaction=True)
def test_storage_that_is_down_fails_no_change_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    row: Any = ModelFactory.create()
    sent: list[Any] = []

    def down(*arguments: Any) -> None:
        raise OSError("no storage")

    monkeypatch.setattr(storage, "store_bytes", down)
    monkeypatch.setattr(current_app, "send_task", lambda name, **more: sent.append((name, more["args"])))
    with transaction.atomic():
        manifests.keep_up(row)
    assert sent == [("medseg_site.tasks.restore_manifests", ["models_app.SegmentationModel", [str(row.uuid)]])]
    monkeypatch.undo()
    from medseg_site.tasks import restore_manifests

    restore_manifests(*sent[0][1])
    document = manifests.read(f"models/{row.uuid}/manifest.json")
    assert manifests.differences(SegmentationModel.objects.get(pk=row.pk), document) == []
