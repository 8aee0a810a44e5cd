"""What a training had learnt when it was cancelled while nobody was at work on it."""

from __future__ import annotations

import errno
from typing import Any
from unittest.mock import Mock

import pytest
from django.core.files.storage import default_storage
from django.test import Client
from django.urls import reverse

from medseg_site.shared.catalogue import manifests
from medseg_site.shared.jobs.claim import claim as claim_row
from medseg_site.shared.jobs.requests import request_cancel, requeue
from medseg_site.shared.storage import objects as storage
from medseg_site.shared.storage import scratch
from ml_core.dataset.fingerprint import Fingerprint
from ml_core.dataset.splits import StoredSplit
from ml_core.planning.plan import Machine
from ml_core.planning.request import TrainingRequest
from ml_core.planning.rules import make_plan
from ml_core.prediction.package import read_package
from ml_core.prediction.predictor import network_of
from ml_core.training.state import save_weights
from models_app import late_weights, tasks
from models_app.models import Epoch, SegmentationModel
from tests.factories import ModelFactory
from tests.pages import HTMX, text

pytestmark = pytest.mark.django_db


def cancelled_between_attempts(**values: Any) -> SegmentationModel:
    """Its worker died after two epochs, and it was cancelled while it waited for another."""
    model: SegmentationModel = ModelFactory.create(requested={"encoder": "plain-16", "patch_size": 32}, **values)
    assert model.dataset
    wanted = TrainingRequest.from_json(model.requested)
    plan = make_plan(
        wanted, Fingerprint.from_json(model.dataset.fingerprint), model.dataset.class_dicts(), Machine.here()
    )
    claim = claim_row(SegmentationModel, model.pk)
    assert claim
    claim.update(plan=plan.to_json(), split=StoredSplit([1, 2], [3], [4]).to_json(), weights_due=True)
    Epoch.objects.create(model=model, epoch=2, val_dice=0.5, learning_rate=0.1, seconds=1, images_per_second=1)
    folder = scratch.training_folder(model.uuid)
    folder.mkdir(parents=True)
    save_weights(folder / "best.safetensors", network_of(plan).state_dict(), {"epoch": 2, "val_dice": 0.5})
    claim.end_attempt("The worker died.")
    model.refresh_from_db()
    request_cancel(model)
    return model


def test_a_training_cancelled_between_two_attempts_keeps_its_best_weights(
    django_capture_on_commit_callbacks: Any,
) -> None:
    model = cancelled_between_attempts()
    assert (model.status, model.is_usable) == ("cancelled", False)  # at once, whoever is busy
    assert model.are_weights_due
    before = sorted(scratch.training_folder(model.uuid).iterdir())
    with django_capture_on_commit_callbacks(execute=True):
        late_weights.keep_weights(model.pk)
    model.refresh_from_db()
    assert (model.status, model.is_usable) == ("cancelled", True)
    package = read_package(storage.fetch(model.s3_key, model.checksum))
    assert (package.facts["best_epoch"], package.split.to_json()) == (2, model.split)
    assert model.timeline[-1]["event"] == "weights kept"
    assert not model.are_weights_due
    assert sorted(scratch.training_folder(model.uuid).iterdir()) == before  # it can still be resumed
    assert manifests.differences(model, manifests.read(f"models/{model.uuid}/manifest.json")) == []


def test_the_page_waits_for_the_weights(client: Client) -> None:
    model = cancelled_between_attempts()
    live = reverse("models_app:live", args=[model.pk])
    assert "are being packed" in text(client, model.get_absolute_url())
    assert "are being packed" in text(client, live, headers=HTMX)
    late_weights.keep_weights(model.pk)
    assert "the model can be used" in text(client, live, headers=HTMX)
    assert "are being packed" not in text(client, model.get_absolute_url())


def test_weights_of_a_training_that_goes_on_meanwhile_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    model = cancelled_between_attempts()
    package = late_weights._package

    def resumed_meanwhile(model: SegmentationModel, folder: Any) -> Any:
        made = package(model, folder)
        requeue(model)
        return made

    monkeypatch.setattr(late_weights, "_package", resumed_meanwhile)
    late_weights.keep_weights(model.pk)
    model.refresh_from_db()
    assert (model.status, model.is_usable) == ("queued", False)
    assert [name for name in default_storage.listdir(f"models/{model.uuid}")[1] if name.startswith("model-")] == []


def test_what_an_outage_kept_from_being_packed_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = cancelled_between_attempts()
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(late_weights, "_package", Mock(side_effect=full))
    with pytest.raises(OSError, match="No space"):
        late_weights.keep_weights(model.pk)
    model.refresh_from_db()
    assert model.are_weights_due


@pytest.mark.parametrize("damaged", [False, True])
def test_where_there_is_nothing_to_keep_nobody_looks_again(monkeypatch: pytest.MonkeyPatch, damaged: bool) -> None:
    model = cancelled_between_attempts()
    best = scratch.training_folder(model.uuid) / "best.safetensors"
    best.unlink()
    if damaged:
        best.write_bytes(b"cut off")
    sent: list[Any] = []
    monkeypatch.setattr(tasks.keep_weights, "apply_async", lambda args, **_: sent.append(args))
    tasks.reap_models()
    late_weights.keep_weights(model.pk)
    tasks.reap_models()
    assert sent == [(model.pk,)]
    model.refresh_from_db()
    assert (model.is_usable, model.timeline[-1]["event"]) == (False, "no weights")
