"""Deletions that meet storage which is away: nothing comes back, nothing is told that is not so, nothing is left for good."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError
from celery import current_app
from django.db import connection

from inference import services as inferences
from inference.models import InferenceBatch, InferenceResult
from medseg_site.shared.base.errors import WrongStateError
from medseg_site.shared.base.local_user import local_user
from medseg_site.shared.catalogue import manifests
from medseg_site.shared.storage import objects as storage
from medseg_site.tasks import remove_remains, restore_manifests
from models_app.models import SegmentationModel
from models_app.services import delete_model
from tests.shared.conftest import Filled

# Each test fills a platform first.
pytestmark = pytest.mark.slow


def down(*arguments: Any) -> None:
    raise OSError("no storage")


@pytest.mark.parametrize("media", ["local"], indirect=True)
def test_storage_that_is_away_refuses_the_deletion(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "delete_objects", down)
    with pytest.raises(OSError, match="no storage"):
        delete_model(user=local_user(), model=filled.orphaned)
    assert SegmentationModel.objects.filter(pk=filled.orphaned.pk).exists()


@pytest.mark.parametrize("media", ["local"], indirect=True)
def test_what_may_not_go_after_all_has_its_manifest_again(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training began between the look and the transaction."""
    looks: list[str] = []

    def in_use_the_second_time(model: SegmentationModel) -> str | None:
        looks.append("there" if storage.size_of(f"models/{model.uuid}/manifest.json") else "gone")
        return "It is in use." if len(looks) > 1 else None

    monkeypatch.setattr("models_app.services.why_not_deletable", in_use_the_second_time)
    manifests.rewrite(SegmentationModel.objects.get(pk=filled.orphaned.pk))
    before = manifests.read(f"models/{filled.orphaned.uuid}/manifest.json")
    with pytest.raises(WrongStateError):
        delete_model(user=local_user(), model=filled.orphaned)
    assert looks == ["there", "gone"]
    assert manifests.read(f"models/{filled.orphaned.uuid}/manifest.json") == before


@pytest.mark.parametrize("media", ["local"], indirect=True)
def test_nobody_is_kept_from_writing_while_storage_is_asked(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    depths: list[int] = []
    outside = len(connection.savepoint_ids) + connection.in_atomic_block
    monkeypatch.setattr(
        storage,
        "delete_objects",
        lambda keys: depths.append(len(connection.savepoint_ids) + connection.in_atomic_block),
    )
    inferences.delete_batch(user=local_user(), batch=InferenceBatch.objects.get(pk=filled.batch.pk))
    assert depths
    assert set(depths) == {outside}


def test_what_cannot_be_removed_after_the_commit_is_removed_by_a_worker(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    owner = str(filled.orphaned.uuid)
    with monkeypatch.context() as away:
        away.setattr(storage, "delete_prefix", down)
        away.setattr(current_app, "send_task", lambda name, **more: sent.append((name, more["args"])))
        delete_model(user=local_user(), model=filled.orphaned)
    assert not SegmentationModel.objects.filter(pk=filled.orphaned.pk).exists()
    with pytest.raises(manifests.ManifestError):  # so rebuild_catalog cannot bring it back
        manifests.read(f"models/{owner}/manifest.json")
    assert owner in storage.owners_of("models")
    assert sent == [("medseg_site.tasks.remove_remains", ["models_app.SegmentationModel", [owner]])]
    remove_remains(*sent[0][1])
    assert owner not in storage.owners_of("models")
    remove_remains("models_app.SegmentationModel", [str(filled.completed.uuid)])  # a living one keeps its objects
    assert storage.size_of(filled.completed.s3_key)


@pytest.mark.parametrize("media", ["local"], indirect=True)
def test_a_large_batch_is_left_to_a_worker(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(inferences, "MANY_IMAGES", 1)
    monkeypatch.setattr(current_app, "send_task", lambda name, **more: sent.append(more["args"]))
    images = [str(owner) for owner in filled.batch.inferences.values_list("uuid", flat=True)]
    inferences.delete_batch(user=local_user(), batch=InferenceBatch.objects.get(pk=filled.batch.pk))
    assert [(label, sorted(owners)) for label, owners in sent] == [("inference.InferenceResult", sorted(images))]
    assert not InferenceResult.objects.filter(uuid__in=images).exists()
    for owner in images:
        assert storage.size_of(f"inferences/{owner}/manifest.json") is None
    remove_remains(*sent[0])
    assert not set(images) & set(storage.owners_of("inferences"))


@pytest.mark.parametrize("media", ["local"], indirect=True)
def test_manifests_are_given_back_by_a_worker_where_storage_is_away(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is answered at once: it asks storage for nothing any more once that did not answer."""
    sent: list[Any] = []
    key = f"models/{filled.orphaned.uuid}/manifest.json"

    def gone_and_no_answer(keys: Any) -> None:
        for each in keys:
            storage.delete_object(each)
        raise EndpointConnectionError(endpoint_url="http://bucket")

    with monkeypatch.context() as away:
        away.setattr(storage, "delete_objects", gone_and_no_answer)
        away.setattr(storage, "store_bytes", lambda key, data: pytest.fail("storage was asked again"))
        away.setattr(current_app, "send_task", lambda name, **more: sent.append((name, more["args"])))
        with pytest.raises(EndpointConnectionError):
            delete_model(user=local_user(), model=filled.orphaned)
    assert storage.size_of(key) is None
    assert sent == [
        ("medseg_site.tasks.restore_manifests", ["models_app.SegmentationModel", [str(filled.orphaned.uuid)]])
    ]
    restore_manifests(*sent[0][1])
    row = SegmentationModel.objects.get(pk=filled.orphaned.pk)
    assert manifests.differences(row, manifests.read(key)) == []


@pytest.mark.parametrize("media", ["local"], indirect=True)
def test_images_that_were_unpacked_meanwhile_go_with_their_batch(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete_objects = storage.delete_objects
    made: list[str] = []

    def slowly(keys: Any) -> None:
        delete_objects(keys)
        if not made:
            owner = uuid.uuid4()
            made.append(storage.store_bytes(f"inferences/{owner}/input.png", b"image").key)
            InferenceResult.objects.create(
                uuid=owner,
                project=filled.batch.project,
                batch=filled.batch,
                model=filled.completed,
                status="queued",
                input_image_s3_key=made[0],
            )

    monkeypatch.setattr(storage, "delete_objects", slowly)
    inferences.delete_batch(user=local_user(), batch=InferenceBatch.objects.get(pk=filled.batch.pk))
    assert storage.size_of(made[0]) is None
