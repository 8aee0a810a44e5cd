"""Deletions that meet storage which is away: nothing comes back, nothing is told that is not so, nothing is left for good."""

from __future__ import annotations

from typing import Any

import pytest
from celery import current_app
from django.db import connection

from inference import services as inferences
from inference.models import InferenceBatch, InferenceResult
from medseg_site.shared import manifests, storage
from medseg_site.shared.errors import WrongStateError
from medseg_site.tasks import remove_remains
from models_app.models import SegmentationModel
from models_app.services import delete_model
from tests.shared.conftest import Filled


def down(*arguments: Any) -> None:
    raise OSError("no storage")


@pytest.mark.parametrize("media", ["local"], indirect=True)
def test_storage_that_is_away_refuses_the_deletion(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "delete_objects", down)
    with pytest.raises(OSError, match="no storage"):
        delete_model(model=filled.orphaned)
    assert SegmentationModel.objects.filter(pk=filled.orphaned.pk).exists()


@pytest.mark.parametrize("media", ["local"], indirect=True)
def test_what_may_not_go_after_all_has_its_manifest_again(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training began between the look and the transaction."""
    looks: list[str] = []

    def in_use_the_second_time(model: SegmentationModel) -> None:
        looks.append("there" if storage.size_of(f"models/{model.uuid}/manifest.json") else "gone")
        if len(looks) > 1:
            raise WrongStateError("It is in use.")

    monkeypatch.setattr("models_app.services._check_not_in_use", in_use_the_second_time)
    manifests.rewrite(SegmentationModel.objects.get(pk=filled.orphaned.pk))
    before = manifests.read(f"models/{filled.orphaned.uuid}/manifest.json")
    with pytest.raises(WrongStateError):
        delete_model(model=filled.orphaned)
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
    inferences.delete_batch(batch=InferenceBatch.objects.get(pk=filled.batch.pk))
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
        delete_model(model=filled.orphaned)
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
    inferences.delete_batch(batch=InferenceBatch.objects.get(pk=filled.batch.pk))
    assert [(label, sorted(owners)) for label, owners in sent] == [("inference.InferenceResult", sorted(images))]
    assert not InferenceResult.objects.filter(uuid__in=images).exists()
    for owner in images:
        assert storage.size_of(f"inferences/{owner}/manifest.json") is None
    remove_remains(*sent[0])
    assert not set(images) & set(storage.owners_of("inferences"))
