"""What the worker keeps of a training: its manifest, and checkpoints of one network or of several."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from django.core.files.storage import default_storage

from medseg_site.shared.catalogue import manifests
from medseg_site.shared.jobs import claim as claims
from medseg_site.shared.jobs.claim import claim as claim_row
from medseg_site.shared.storage import objects as storage
from medseg_site.shared.storage import scratch
from ml_core.dataset.fingerprint import Fingerprint
from ml_core.dataset.splits import StoredSplit
from ml_core.errors import DISK_FULL
from ml_core.planning.budget import Estimate, Stage
from ml_core.planning.plan import Machine
from ml_core.planning.request import TrainingRequest
from ml_core.planning.rules import make_plan
from ml_core.prediction.decisions import Decisions
from ml_core.prediction.package import read_package
from ml_core.prediction.predictor import network_of
from ml_core.training.events import (
    CurvePoint,
    Done,
    EpochEnded,
    EstimateMade,
    Event,
    Failed,
    Note,
    PlanMade,
    Progress,
    Started,
    read_event,
    to_line,
)
from ml_core.training.state import save_weights
from models_app import training
from models_app.late_weights import keep_weights
from models_app.models import Epoch, SegmentationModel
from models_app.training_process import TrainingFailedError, TrainingProcess
from tests.factories import ModelFactory, SampleFactory
from tests.pages import DECISIONS, ESTIMATE, METRICS

pytestmark = pytest.mark.django_db


def test_the_manifest_says_everything_that_the_row_says(tmp_path: Path) -> None:
    model = ModelFactory.create(requested={"epochs": 1})
    claim = claim_row(SegmentationModel, model.pk)
    assert claim
    claim.update(estimate=ESTIMATE, plan={"seed": 0}, split={"train": [1]}, hyperparameters={"epochs": 1})
    folder = tmp_path / "training"
    folder.mkdir()
    package = folder / "model.zip"
    package.write_bytes(b"weights")
    outcome = {
        "package": str(package),
        "metrics": METRICS,
        "decisions": DECISIONS,
        "warnings": ["few"],
        "stopped": False,
    }
    training._keep(claim, folder, Done.from_json({**outcome, "type": "done"}))
    model.refresh_from_db()
    assert (model.status, model.decisions, model.estimate) == ("completed", DECISIONS, ESTIMATE)
    manifest = manifests.read(f"models/{model.uuid}/manifest.json")
    assert set(manifest["row"]) == {field.name for field in SegmentationModel._meta.fields} - manifests.LEFT_OUT
    assert manifests.differences(model, manifest) == []
    assert (manifest["row"]["status"], manifest["row"]["metrics"]) == ("completed", METRICS)


@pytest.mark.parametrize("names", [["latest"], ["member_0/latest", "member_1/latest"]])
def test_checkpoints_of_one_network_or_several_come_back_on_another_machine(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = ModelFactory.create()
    here, there = tmp_path / "here", tmp_path / "there"
    there.mkdir()
    files = {
        f"{name}.safetensors": name.encode() for latest in names for name in (latest, latest.replace("latest", "best"))
    }
    for name, content in files.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content)
    training._store_checkpoints(model, here)
    monkeypatch.setattr(storage, "is_remote", lambda: True)
    monkeypatch.setattr(storage, "fetch", lambda key: Path(default_storage.path(key)))
    training.bring_checkpoints(model, there)
    assert {str(path.relative_to(there)): path.read_bytes() for path in there.rglob("*.safetensors")} == files


def test_only_checkpoints_that_changed_are_stored_again(tmp_path: Path) -> None:
    model: Any = ModelFactory.create()
    key = f"models/{model.uuid}/checkpoints/latest.safetensors"
    stored: dict[Path, int] = {}
    (tmp_path / "latest.safetensors").write_bytes(b"x")
    training._store_checkpoints(model, tmp_path, stored)
    default_storage.delete(key)
    training._store_checkpoints(model, tmp_path, stored)
    assert not default_storage.exists(key)
    (tmp_path / "latest.safetensors").write_bytes(b"y")
    training._store_checkpoints(model, tmp_path, stored)
    assert default_storage.open(key).read() == b"y"


def test_what_a_failed_round_did_not_store_the_next_one_does(tmp_path: Path, own_media: Path) -> None:
    """The best weights seldom change: without them another machine would go on with a `latest` that speaks of them."""
    model: Any = ModelFactory.create()
    progress = training._KeptProgress(model, tmp_path)
    (tmp_path / "best.safetensors").write_bytes(b"best")  # perhaps an earlier attempt's, which did not come to store it
    in_the_way = own_media / f"models/{model.uuid}/checkpoints"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()
    training._store_checkpoints(model, tmp_path, progress.stored)
    in_the_way.unlink()
    (tmp_path / "latest.safetensors").write_bytes(b"latest")
    training._store_checkpoints(model, tmp_path, progress.stored)
    assert {path.name for path in in_the_way.iterdir()} == {"best.safetensors", "latest.safetensors"}


@pytest.mark.slow
def test_a_cancel_before_a_later_attempt_starts_keeps_the_best_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the objects are brought, of which packaging needs none: this dataset's are not even in storage."""
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.0)  # the wish is read with the first sample
    model = ModelFactory.create(requested={"encoder": "plain-16", "patch_size": 32, "epochs": 3})
    SampleFactory.create_batch(4, dataset=model.dataset)
    assert model.dataset
    wanted = TrainingRequest.from_json(model.requested)
    plan = make_plan(
        wanted, Fingerprint.from_json(model.dataset.fingerprint), model.dataset.class_dicts(), Machine.here()
    )
    split = StoredSplit([1, 2], [3], [4]).to_json()
    SegmentationModel.objects.filter(pk=model.pk).update(
        plan=plan.to_json(), split=split, weights_due=True, cancel_requested=True
    )
    folder = scratch.training_folder(model.uuid)
    folder.mkdir(parents=True)
    save_weights(folder / "best.safetensors", network_of(plan).state_dict(), {"epoch": 2, "val_dice": 0.5})
    training.train(model.pk)
    model.refresh_from_db()
    assert (model.status, model.are_weights_due, model.progress) == ("cancelled", True, {})
    keep_weights(model.pk)
    model.refresh_from_db()
    assert (model.status, model.is_usable, model.are_weights_due) == ("cancelled", True, False)
    package = read_package(storage.fetch(model.s3_key, model.checksum))
    assert (package.facts["best_epoch"], package.split.to_json()) == (2, split)


def test_a_cancel_before_the_first_step_of_all_leaves_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.0)
    model = ModelFactory.create()
    SampleFactory.create_batch(4, dataset=model.dataset)
    SegmentationModel.objects.filter(pk=model.pk).update(cancel_requested=True)
    training.train(model.pk)
    model.refresh_from_db()
    assert (model.status, model.is_usable, model.are_weights_due) == ("cancelled", False, False)


def test_a_curve_is_that_of_the_checkpoint_whatever_came_to_be_written_before(tmp_path: Path) -> None:
    """A database that was locked may lack epochs that the checkpoint has; a checkpoint of before a kill may lack some that it has."""
    model = ModelFactory.create()
    claim = claim_row(SegmentationModel, model.pk)
    assert claim
    curve = [CurvePoint(number, 1.0, 1.0, math.nan, math.nan, 0.1, 1.0, 2.0) for number in (1, 2, 3, 4)]
    for number in (1, 2, 9):
        Epoch.objects.create(model=model, **{**curve[0].to_json(), "epoch": number, "train_loss": 7.0})
    process = TrainingProcess.__new__(TrainingProcess)  # without the process
    process.job = claim
    process._handle(Started(4, curve))
    assert list(model.epochs.values_list("epoch", "train_loss")) == [(1, 7.0), (2, 7.0), (3, 1.0), (4, 1.0)]


def test_what_the_process_tells_is_kept_in_the_row() -> None:
    model = ModelFactory.create(requested={"encoder": "plain-16", "patch_size": 32})
    assert model.dataset
    wanted = TrainingRequest.from_json(model.requested)
    fingerprint = Fingerprint.from_json(model.dataset.fingerprint)
    plan = make_plan(wanted, fingerprint, model.dataset.class_dicts(), Machine(False, 2, False))
    claim = claim_row(SegmentationModel, model.pk)
    assert claim
    process = TrainingProcess.__new__(TrainingProcess)  # without the process
    process.job, process.warnings, process.on_epoch = claim, [], lambda: None
    point = CurvePoint(1, 0.5, 0.4, math.nan, math.nan, 0.1, 1.0, 2.0)
    done = Done(False, "/model.zip", None, Decisions(), ["Small."])
    told: list[Event] = [
        PlanMade(plan, StoredSplit([1, 2], [3])),
        EstimateMade(Estimate.from_json(ESTIMATE)),
        EpochEnded(point),
        Note("Small."),
        Progress(Stage.TRAINING, 8, 2, 3, 0.5, 1.5, steps=24),
    ]
    assert [process._handle(read_event(to_line(event))) for event in told] == [None] * 5
    assert process._handle(done) is done
    model.refresh_from_db()
    assert (model.plan, model.hyperparameters) == (plan.to_json(), plan.hyperparameters())
    assert model.split == StoredSplit([1, 2], [3]).to_json()
    assert (model.estimate, model.warnings, process.seconds_a_step) == (ESTIMATE, ["Small."], 0.5)
    assert list(model.epochs.values_list("epoch", "train_loss", "val_loss", "val_dice")) == [(1, 0.5, 0.4, None)]
    assert isinstance(process.progress, Progress)
    assert process.progress.step == 8


@pytest.mark.parametrize(("code", "error"), [("diverged", TrainingFailedError), (DISK_FULL, OSError)])
def test_a_failure_is_told_and_a_full_disk_is_an_outage(code: str, error: type[Exception]) -> None:
    process = TrainingProcess.__new__(TrainingProcess)
    with pytest.raises(error, match="It does not go"):
        process._handle(Failed(code, "It does not go.", "Try otherwise."))
