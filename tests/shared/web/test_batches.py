"""Batches: what other processes do while one is unpacked, and what becomes of one whose image is tried again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from inference import batches, prediction, tasks
from inference.models import InferenceBatch, InferenceResult
from inference.services import cancel_batch, create_batch, delete_batch, retry_inference
from medseg_site.demo import png
from medseg_site.shared.base.errors import WrongStateError
from medseg_site.shared.base.events import redis_client
from medseg_site.shared.base.local_user import local_user
from medseg_site.shared.catalogue import manifests
from medseg_site.shared.jobs import reaper
from medseg_site.shared.storage import objects as storage
from models_app.services import delete_model
from tests.problems import find_problems
from tests.shared.conftest import Filled, cell, zipped

pytestmark = pytest.mark.parametrize("media", ["local"], indirect=True)


def two_images(user: Any, filled: Filled) -> InferenceBatch:
    files = {f"{name}.png": png(cell(seed)[0]) for seed, name in enumerate("ab")}
    return create_batch(user=user, model=filled.completed, archive=zipped(files))


def test_images_that_workers_finish_meanwhile_keep_their_last_manifest(
    user: Any, filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = two_images(user, filled)
    store_many = manifests.store_many

    def after_a_worker(rows: list[InferenceResult]) -> None:
        prediction.predict(rows[0].pk)
        store_many(rows)

    monkeypatch.setattr(manifests, "store_many", after_a_worker)
    assert batches.expand(batch.pk)
    done = batch.inferences.get(status="completed")
    assert manifests.read(f"inferences/{done.uuid}/manifest.json")["row"]["status"] == "completed"
    assert find_problems() == []


def test_a_batch_that_is_deleted_meanwhile_leaves_nothing_behind(
    user: Any, filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = two_images(user, filled)
    store_many, before = manifests.store_many, set(storage.owners_of("inferences"))

    def after_a_deletion(rows: list[InferenceResult]) -> None:
        delete_batch(user=local_user(), batch=InferenceBatch.objects.get(pk=batch.pk))
        store_many(rows)

    monkeypatch.setattr(manifests, "store_many", after_a_deletion)
    batches.expand(batch.pk)
    assert set(storage.owners_of("inferences")) == before
    assert not InferenceBatch.objects.filter(pk=batch.pk).exists()


def test_an_image_tried_again_opens_its_failed_batch(
    user: Any, filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = two_images(user, filled)
    assert batches.expand(batch.pk)

    def broken(*arguments: Any) -> None:
        raise ValueError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(prediction, "_predict", broken)
        for image in batch.inferences.all():
            prediction.predict(image.pk)
    batch.refresh_from_db()
    assert batch.status == "failed"
    image = batch.inferences.first()
    assert image
    retry_inference(user=local_user(), inference=image)
    batches.expand(batch.pk)
    prediction.predict(image.pk)
    batch.refresh_from_db()
    assert (batch.status, batch.error) == ("completed", None)
    assert sorted(batch.inferences.values_list("status", flat=True)) == ["completed", "failed"]
    assert find_problems() == []


def test_a_model_stays_while_a_batch_waits_for_it_and_a_deleted_one_takes_no_work(user: Any, filled: Filled) -> None:
    batch = two_images(user, filled)
    filled.queued.delete()
    with pytest.raises(WrongStateError, match="batch"):
        delete_model(user=local_user(), model=filled.completed)
    delete_batch(user=local_user(), batch=batch)
    gone = filled.completed
    delete_model(user=local_user(), model=type(gone).objects.get(pk=gone.pk))
    with pytest.raises(WrongStateError, match="deleted"):
        create_batch(user=user, model=gone, archive=zipped({"a.png": png(cell(1)[0])}))


def said_of(batch: InferenceBatch) -> set[tuple[str, str]]:
    """Status and last event of each image, as the manifests have them."""
    documents = [manifests.read(f"inferences/{image.uuid}/manifest.json") for image in batch.inferences.all()]
    return {(document["row"]["status"], document["row"]["timeline"][-1]["event"]) for document in documents}


def test_a_cancellation_whose_message_was_lost_is_told_to_the_manifests_all_the_same(
    user: Any, filled: Filled, api: APIClient
) -> None:
    batch = two_images(user, filled)
    assert batches.expand(batch.pk)
    shown = api.post(f"/api/v1/inference-batches/{batch.pk}/cancel/").json()
    assert (shown["status"], shown["cancel_requested"], shown["failed"]) == ("running", True, 2)
    assert manifests.read(f"batches/{batch.uuid}/manifest.json")["row"]["cancel_requested"]
    assert said_of(batch) == {("queued", "queued")}
    queue = redis_client()
    queue.delete("housekeeping")  # the broker lost all that it had
    tasks.reap_inferences()
    assert queue.llen("housekeeping") == 0, "the message may still be on its way"
    long_ago = timezone.now() - timedelta(seconds=reaper.LOST_MESSAGE_SECONDS + 5)
    InferenceBatch.objects.filter(pk=batch.pk).update(called_at=long_ago)
    for _ in range(2):
        tasks.reap_inferences()
    sent = queue.lrange("housekeeping", 0, -1)
    assert len(sent) == 1
    assert tasks.note_cancelled.name.encode() in sent[0]
    queue.delete("housekeeping")
    tasks.note_cancelled(batch.pk)
    batch.refresh_from_db()
    assert (batch.status, batch.timeline[-1]["event"]) == ("cancelled", "cancelled")
    assert said_of(batch) == {("cancelled", "cancelled")}
    assert find_problems() == []


def test_telling_of_a_cancellation_goes_on_where_it_stopped(
    user: Any, filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = two_images(user, filled)
    assert batches.expand(batch.pk)
    cancel_batch(user=local_user(), batch=batch)
    store = manifests.store
    told: list[int] = []

    def away_after_the_first(row: Any) -> None:
        if told:
            raise OSError("no storage")
        told.append(row.pk)
        store(row)

    with monkeypatch.context() as patch:
        patch.setattr(manifests, "store", away_after_the_first)
        with pytest.raises(OSError, match="no storage"):
            tasks.note_cancelled(batch.pk)
    batch.refresh_from_db()
    assert batch.status == "running"
    second = batch.inferences.exclude(pk=told[0]).get()
    with pytest.raises(WrongStateError, match="being cancelled"):
        retry_inference(user=local_user(), inference=second)
    tasks.note_cancelled(batch.pk)
    batch.refresh_from_db()
    assert batch.status == "cancelled"
    assert [len(image.timeline) for image in batch.inferences.all()] == [2, 2], "queued and cancelled, once each"
    assert find_problems() == []
