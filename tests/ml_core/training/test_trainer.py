"""A whole training on pictures drawn here: plan → store → loop → evaluation → package → prediction."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from ml_core.cases.patches import PatchSampler
from ml_core.cases.store import open_store
from ml_core.dataset.case import Case, label_indices
from ml_core.dataset.classes import LabelClass
from ml_core.dataset.fingerprint import Fingerprint, FingerprintBuilder
from ml_core.dataset.splits import StoredSplit
from ml_core.errors import TrainingError
from ml_core.io import read_image, read_mask
from ml_core.measures.results import Metrics
from ml_core.planning.plan import Machine, Plan
from ml_core.planning.request import TrainingRequest
from ml_core.planning.rules import make_plan
from ml_core.prediction.decisions import Decisions
from ml_core.prediction.package import read_package
from ml_core.prediction.predictor import Predictor
from ml_core.training.augmentation import PRESETS, augment
from ml_core.training.events import CurvePoint, Done, EpochEnded, Event, PlanMade, Started
from ml_core.training.job import TrainingJob
from ml_core.training.run import run
from ml_core.training.state import epoch_of, load_weights, read_state, save_weights

CLASSES: list[LabelClass] = [
    {"value": 0, "name": "background", "color": "#000000"},
    {"value": 255, "name": "disc", "color": "#ff0000"},
]
QUICK = {"epochs": 2, "patch_size": 32, "batch_size": 4, "encoder": "plain-16", "learning_rate": 3e-3}


def draw(folder: Path, count: int, side: int = 48) -> list[Case]:
    """Bright discs on a dark ground."""
    rng, cases = np.random.default_rng(0), []
    y, x = np.mgrid[:side, :side]
    for index in range(count):
        cy, cx = (float(rng.uniform(14, side - 14)) for _ in range(2))
        radius = float(rng.uniform(8, 13))
        disc = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        pixels = np.clip(disc * 120 + 60 + rng.normal(0, 8, disc.shape), 0, 255).astype(np.uint8)
        image, mask = folder / f"image{index}.png", folder / f"mask{index}.png"
        PILImage.fromarray(pixels).save(image)
        PILImage.fromarray((disc * 255).astype(np.uint8)).save(mask)
        cases.append(
            Case(
                id=index + 1,
                name=f"case {index}",
                image=image,
                mask=mask,
                key=f"image-{side}-{index} mask-{side}-{index}",
            )
        )
    return cases


def fingerprint_of(cases: list[Case]) -> Fingerprint:
    builder = FingerprintBuilder()
    for case in cases:
        values = read_mask(case.mask).values
        present, counts = np.unique(values, return_counts=True)
        builder.add(read_image(case.image), values, dict(zip(present.tolist(), counts.tolist(), strict=True)))
    return builder.result()


def plan_for(cases: list[Case], **wanted: Any) -> Plan:
    return make_plan(TrainingRequest.from_json(wanted), fingerprint_of(cases), CLASSES, Machine(False, 2, False))


def asked(wanted: dict[str, Any]) -> TrainingRequest:
    return TrainingRequest.from_json(wanted)


def train(folder: Path, cases: list[Case], stop_after: int | None = None, **wanted: Any) -> list[Event]:
    """The events of one training in `folder`, stopped after so many epochs."""
    folder.mkdir(exist_ok=True)
    events: list[Event] = []
    job = TrainingJob(
        cases, CLASSES, fingerprint_of(cases), asked({**QUICK, **wanted}), folder, folder.parent / "store"
    )
    run(job, on_event=events.append, should_stop=lambda: stop_after is not None and len(curve(events)) >= stop_after)
    return events


def curve(events: list[Event]) -> list[CurvePoint]:
    return [event.point for event in events if isinstance(event, EpochEnded)]


def losses(events: list[Event]) -> list[float]:
    return [point.train_loss for point in curve(events)]


def result(events: list[Event]) -> Done:
    """The last event."""
    assert isinstance(events[-1], Done)
    return events[-1]


def metrics_of(events: list[Event]) -> Metrics:
    metrics = result(events).metrics
    assert metrics
    return metrics


def package_of(events: list[Event]) -> Path:
    package = result(events).package
    assert package
    return Path(package)


def planned(events: list[Event]) -> PlanMade:
    return next(event for event in events if isinstance(event, PlanMade))


@pytest.mark.slow
def test_a_training_learns_and_its_package_predicts(tmp_path: Path) -> None:
    cases = draw(tmp_path, 12)
    events = train(tmp_path / "run", cases, epochs=8, test_fraction=0.2)
    assert [event.type for event in events if event.type != "progress"] == [
        "plan",
        "estimate",
        "start",
        *["epoch"] * 8,
        "done",
    ]
    assert losses(events)[-1] < losses(events)[0]
    metrics = metrics_of(events)
    assert metrics.evaluated_on == "test"
    assert metrics.n_cases == len(metrics.per_case) == 2
    assert metrics.dice > 0.8
    assert [row.value for row in metrics.per_class] == [0, 255]
    assert sorted(path.name for path in (tmp_path / "run/cases").iterdir()) == sorted(
        f"{row.sample}.png" for row in metrics.per_case
    )
    predictor = Predictor.load(package_of(events))
    found = predictor.predict(read_image(cases[0].image))
    assert set(np.unique(found.values)) <= {0, 255}
    assert found.values.shape == (48, 48)
    truth = read_mask(cases[0].mask).values == 255
    assert 2 * (truth & (found.values == 255)).sum() / (truth.sum() + (found.values == 255).sum()) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_seed_gives_one_curve(tmp_path: Path, optimizer: str) -> None:
    cases = draw(tmp_path, 4)
    assert losses(train(tmp_path / "a", cases, optimizer=optimizer)) == losses(
        train(tmp_path / "b", cases, optimizer=optimizer)
    )
    assert losses(train(tmp_path / "a2", cases, seed=1, optimizer=optimizer)) != losses(
        train(tmp_path / "b2", cases, seed=2, optimizer=optimizer)
    )


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stopped_training_keeps_its_best_weights_and_goes_on_where_it_was(tmp_path: Path, optimizer: str) -> None:
    cases = draw(tmp_path, 4)
    whole = train(tmp_path / "whole", cases, epochs=4, optimizer=optimizer)
    stopped = train(tmp_path / "run", cases, epochs=4, stop_after=2, optimizer=optimizer)
    assert result(stopped).stopped
    assert read_package(package_of(stopped)).metrics is None
    resumed = train(tmp_path / "run", cases, epochs=4, optimizer=optimizer)
    start = next(event for event in resumed if isinstance(event, Started))
    assert (start.epoch, start.curve) == (2, curve(stopped))
    assert [point.epoch for point in curve(resumed)] == [3, 4]
    assert losses(stopped) + losses(resumed) == pytest.approx(losses(whole), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [4, 3])  # one is left, or none
@pytest.mark.parametrize("lost", ["all", "the last"])
def test_a_training_goes_on_where_its_best_weights_were_lost(tmp_path: Path, epochs: int, lost: str) -> None:
    """Another machine may have stored `latest` and not `best`, whose score no later epoch need reach."""
    cases, folder = draw(tmp_path, 4), tmp_path / "run"
    train(folder, cases, epochs=4, stop_after=3)
    latest, best = folder / "latest.safetensors", folder / "best.safetensors"
    assert read_state(latest).best_epoch > 1
    change_score_of_best(latest, 2.0)  # out of reach
    if lost == "all":
        best.unlink()
    else:
        save_weights(best, load_weights(best), {"epoch": 1})
    assert not result(train(folder, cases, epochs=epochs)).stopped
    assert epoch_of(best) in {3, epochs}  # of which the package is made


def change_score_of_best(latest: Path, dice: float, best_epoch: int | None = None) -> None:
    """As if the best epoch (so far, or another) had had another Dice."""
    state = read_state(latest)
    best_epoch = best_epoch or state.best_epoch
    points = [replace(point, val_dice=dice) if point.epoch == best_epoch else point for point in state.curve]
    save_weights(latest, load_weights(latest), replace(state, curve=points, best_epoch=best_epoch))


@pytest.mark.slow
def test_best_weights_that_are_newer_than_the_rest_stay(tmp_path: Path) -> None:
    """A kill came between the two: they are better than what `latest` knows of."""
    cases, folder = draw(tmp_path, 4), tmp_path / "run"
    train(folder, cases, epochs=4, stop_after=3)
    change_score_of_best(folder / "latest.safetensors", 2.0, best_epoch=1)
    best = folder / "best.safetensors"
    before = best.read_bytes()
    assert not result(train(folder, cases, epochs=4)).stopped
    assert best.read_bytes() == before


def test_a_stop_before_the_first_step_leaves_no_model(tmp_path: Path) -> None:
    events = train(tmp_path / "run", draw(tmp_path, 3), stop_after=0)
    assert events[-1] == Done(stopped=True, package=None, metrics=None, decisions=Decisions(), warnings=[])


@pytest.mark.slow
def test_patience_ends_a_training_that_does_not_improve(tmp_path: Path) -> None:
    events = train(tmp_path / "run", draw(tmp_path, 3), epochs=50, early_stopping_patience=1, learning_rate=1e-7)
    assert len(curve(events)) < 50


def test_a_diverged_training_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NotANumber(torch.nn.Module):
        def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return logits.sum() * float("nan")

    monkeypatch.setattr("ml_core.training.trainer.make_loss", lambda name, **options: NotANumber())
    with pytest.raises(TrainingError, match="lower learning rate"):
        train(tmp_path / "run", draw(tmp_path, 3))


@pytest.mark.slow
def test_little_data_is_said_in_the_warnings(tmp_path: Path) -> None:
    done = result(train(tmp_path / "run", draw(tmp_path, 3), epochs=1))
    assert done.metrics
    assert done.metrics.evaluated_on == "val"
    assert any("too small for a test part" in text for text in done.warnings)


def test_the_plan_gives_a_reason_for_everything_and_obeys_the_user(tmp_path: Path) -> None:
    plan = plan_for(draw(tmp_path, 3), epochs=7)
    assert plan.epochs == 7
    assert plan.time_budget_seconds is None
    assert plan.reasons["epochs"] == "You chose it."
    assert set(plan.hyperparameters()) <= set(plan.reasons)
    assert plan.patch_size == 64
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_label_that_is_no_class_is_refused() -> None:
    assert label_indices(np.array([[0, 255]]), [0, 255], "x").tolist() == [[0, 1]]
    with pytest.raises(TrainingError, match=r"\[7\]"):
        label_indices(np.array([[0, 7]]), [0, 255], "x")


def test_patches_have_one_size_also_from_smaller_images(tmp_path: Path) -> None:
    cases = draw(tmp_path, 2, side=40)
    plan = plan_for(cases, patch_size=96, batch_size=3)
    sampler = PatchSampler(open_store(tmp_path / "store", cases, plan, lambda done, total: None), plan)
    images, labels = sampler.batch(0)
    assert images.shape == (3, 1, 96, 96)
    assert labels.shape == (3, 96, 96)
    assert set(np.unique(labels)) == {0, 1}


def test_few_cases_stay_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each keeps files open, of which a process may have a thousand or fewer."""
    monkeypatch.setattr("ml_core.cases.patches.MAPPED_CASES", 2)
    cases = draw(tmp_path, 5)
    plan = plan_for(cases, **QUICK)
    sampler = PatchSampler(open_store(tmp_path / "store", cases, plan, lambda done, total: None), plan)
    folder = str(tmp_path / "store")
    most = 0
    for step in range(10):
        sampler.batch(step)
        maps = Path("/proc/self/maps").read_text().splitlines()
        most = max(most, len({line.split()[-1] for line in maps if folder in line}))
    assert 0 < most <= 4


def test_the_store_is_made_once_and_mapped(tmp_path: Path) -> None:
    cases = draw(tmp_path, 2)
    plan = plan_for(cases)
    first = open_store(tmp_path / "store", cases, plan, lambda done, total: None)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()}
    cases[0].image.unlink()
    second = open_store(tmp_path / "store", cases, plan, lambda done, total: None)
    assert isinstance(second[0].images, np.memmap)
    assert np.array_equal(first[0].images, second[0].images)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()}


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("shape", [(32, 32), (32, 48)])
def test_augmentation_moves_image_and_labels_together(preset: str, shape: tuple[int, int]) -> None:
    labels = torch.zeros(6, *shape, dtype=torch.long)
    labels[:, 8:20, 10:24] = 1
    images = labels.unsqueeze(1).float() * 4 - 2
    changed, moved = augment(images, labels, PRESETS[preset], torch.Generator().manual_seed(3))
    assert changed.shape == images.shape
    assert moved.dtype == torch.long
    assert set(moved.unique().tolist()) <= {0, 1}
    for image, label in zip(changed[:, 0], moved, strict=True):
        if label.float().mean() > 0.05:
            assert image[label == 1].mean() > image[label == 0].mean() + 1


@pytest.mark.slow
def test_without_foreground_to_validate_on_the_loss_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    falling = iter([0.9, 0.5, 0.7])
    monkeypatch.setattr(
        "ml_core.training.trainer.Validator.validate", lambda *rest: (next(falling), float("nan"), float("nan"))
    )
    events = train(tmp_path / "run", draw(tmp_path, 3), epochs=3)
    assert read_package(package_of(events)).facts["best_epoch"] == 2


def test_a_stop_during_the_evaluation_keeps_the_weights(tmp_path: Path) -> None:
    cases = draw(tmp_path, 4)
    events: list[Event] = []
    job = TrainingJob(
        cases, CLASSES, fingerprint_of(cases), asked({**QUICK, "epochs": 1}), tmp_path / "run", tmp_path / "store"
    )
    job.folder.mkdir()
    pictures = job.folder / "cases"  # made when the evaluation begins
    run(job, on_event=events.append, should_stop=pictures.exists)
    assert result(events).stopped
    assert result(events).metrics is None
    assert package_of(events).exists()


def test_a_class_of_few_cases_is_drawn_often_enough_to_be_learnt(tmp_path: Path) -> None:
    """One of forty cases shows the disc: without regard to that, one patch in 160 would be placed on it."""
    cases = draw(tmp_path, 40)
    for case in cases[1:]:
        PILImage.fromarray(np.zeros((48, 48), np.uint8)).save(case.mask)
    plan = plan_for(cases, patch_size=32, foreground_share=0.5)
    stored = open_store(tmp_path / "store", cases, plan, lambda done, total: None)
    sampler, rng = PatchSampler(stored, plan), np.random.default_rng(0)
    with_disc = sum(bool(sampler.draw(rng)[1].any()) for _ in range(1000))
    assert 50 < with_disc < 250  # the root of 1 beside the root of 40, of one half


def test_classes_that_only_held_out_cases_show_are_named(tmp_path: Path) -> None:
    cases = draw(tmp_path, 6)
    for case in cases[1:]:
        PILImage.fromarray(np.zeros((48, 48), np.uint8)).save(case.mask)
    job = TrainingJob(
        cases,
        CLASSES,
        fingerprint_of(cases),
        asked({**QUICK, "epochs": 1}),
        tmp_path / "run",
        tmp_path / "store",
        split=StoredSplit([2, 3, 4, 5], [1, 6]),
    )
    job.folder.mkdir()
    events: list[Event] = []
    run(job, on_event=events.append, should_stop=lambda: False)
    assert any("No case that is learnt from shows disc" in text for text in result(events).warnings)


def test_an_evaluation_that_would_not_end_in_time_takes_fewer_cases_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ml_core.planning.budget.LATEST_SHARE", 0.0
    )  # as if the budget were over when the evaluation begins
    cases = draw(tmp_path, 8)
    split = StoredSplit([1, 2, 3], [4], [5, 6, 7, 8])
    wanted = {**QUICK, "epochs": 1, "time_budget_seconds": 60}
    job = TrainingJob(
        cases, CLASSES, fingerprint_of(cases), asked(wanted), tmp_path / "run", tmp_path / "store", split=split
    )
    job.folder.mkdir()
    events: list[Event] = []
    run(job, on_event=events.append, should_stop=lambda: False)
    metrics = metrics_of(events)
    assert (metrics.n_cases, metrics.held_out, len(metrics.per_case)) == (1, 4, 1)
    assert any(text.startswith("Only 1 of the 4 held-out cases could be evaluated") for text in result(events).warnings)
