"""2.5D and 3D from files to label maps on the files' own grids; ensembles; a warm start; a stored split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from ml_core.cases.preprocessing import labels_to_network, network_shape, preprocess
from ml_core.dataset.case import Case, label_indices
from ml_core.dataset.classes import LabelClass
from ml_core.dataset.fingerprint import FingerprintBuilder
from ml_core.dataset.splits import StoredSplit
from ml_core.errors import TrainingError
from ml_core.io import read_image, read_mask
from ml_core.measures.metrics import case_metrics
from ml_core.planning.budget import Estimate
from ml_core.planning.plan import Preprocessing
from ml_core.prediction.package import read_package
from ml_core.prediction.predictor import Predictor, network_of
from ml_core.prediction.runtimes import Forward, TorchForward
from ml_core.training.events import Event
from ml_core.training.job import TrainingJob
from ml_core.training.preflight import rehearse as measure
from ml_core.training.run import run
from tests.ml_core.training.test_trainer import CLASSES as PICTURE_CLASSES
from tests.ml_core.training.test_trainer import (
    asked,
    curve,
    draw,
    fingerprint_of,
    metrics_of,
    package_of,
    planned,
    result,
)
from tests.ml_core.training.test_trainer import train as train_pictures
from tests.synthetic import draw_volume, write_nifti

CLASSES: list[LabelClass] = [
    {"value": 0, "name": "background", "color": "#000"},
    {"value": 7, "name": "ball", "color": "#f00"},
]
TURNED = np.array([[0, 0, -3.0, 9], [0.9, 0, 0, 5], [0, -0.8, 0, 1], [0, 0, 0, 1]])  # axes swapped and mirrored


def volumes(folder: Path, count: int, spacing: tuple[float, float, float]) -> list[Case]:
    rng, cases = np.random.default_rng(0), []
    for index in range(count):
        array, labels = draw_volume(rng, (12, 40, 36))
        affine = np.diag([*spacing[::-1], 1.0])
        image = write_nifti(folder / f"image{index}.nii.gz", array.transpose(), affine)
        mask = write_nifti(folder / f"mask{index}.nii.gz", (labels * np.uint8(7)).transpose(), affine)
        cases.append(Case(index + 1, f"volume {index}", image, mask, key=f"{spacing} {index}"))
    return cases


def train(folder: Path, cases: list[Case], **wanted: Any) -> list[Event]:
    builder = FingerprintBuilder()
    for case in cases:
        values = read_mask(case.mask).values
        present, counts = np.unique(values, return_counts=True)
        builder.add(read_image(case.image), values, dict(zip(present.tolist(), counts.tolist(), strict=True)))
    folder.mkdir()
    events: list[Event] = []
    job = TrainingJob(
        cases, CLASSES, builder.result(), asked({"encoder": "plain-8", **wanted}), folder, folder.parent / "store"
    )
    run(job, on_event=events.append, should_stop=lambda: False)
    return events


@pytest.mark.slow
@pytest.mark.parametrize(("spacing", "configuration"), [((2.0, 1.0, 1.0), "3d"), ((4.0, 1.0, 1.0), "2.5d")])
def test_a_volume_is_learnt_and_answered_on_its_own_grid(
    tmp_path: Path, spacing: tuple[float, float, float], configuration: str
) -> None:
    cases = volumes(tmp_path, 4, spacing)
    wanted = {"configuration": configuration, "epochs": 3, "patch_size": 32, "learning_rate": 0.01, "batch_size": 2}
    encoder = {"encoder": "plain-16"} if configuration == "2.5d" else {"spacing": "1.5 1.5 1.5"}
    events = train(tmp_path / "run", cases, **wanted, **encoder)
    assert metrics_of(events).dice > 0.5
    assert metrics_of(events).volume_unit == "mm³"
    predictor = Predictor.load(package_of(events))
    assert predictor.plan.configuration == configuration
    array, _ = draw_volume(np.random.default_rng(9), (12, 40, 36))
    # The same volume, stored with other axes: the answer must lie on those.
    stored = np.ascontiguousarray(array.transpose(1, 0, 2)[::-1])
    turned = read_image(write_nifti(tmp_path / "turned.nii.gz", stored, np.diag([1.0, spacing[0], 1.0, 1.0])))
    found = predictor.predict(turned)
    assert found.values.shape == found.certainty.shape == turned.shape
    assert set(np.unique(found.values)) <= {0, 7}
    assert 0 <= found.confidence <= 1


def test_resampling_there_and_back_keeps_shapes_and_places(tmp_path: Path) -> None:
    array, labels = draw_volume(np.random.default_rng(0), (12, 40, 36))
    image = read_image(write_nifti(tmp_path / "x.nii.gz", array.transpose(), TURNED))
    mask = read_mask(write_nifti(tmp_path / "m.nii.gz", labels.transpose(), TURNED), like=image).values
    how = Preprocessing(1, "image", whole=True, spacing=[3.0, 1.6, 1.8], unit="mm")
    shape = network_shape(image, how)
    assert preprocess(image, how).shape == (1, 1, *shape)
    smaller = labels_to_network(mask.astype(np.uint8), image, how)
    assert smaller.shape == (1, *shape)
    assert (smaller > 0).mean() == pytest.approx((mask > 0).mean(), rel=0.1)
    bright = preprocess(image, how)[0, 0]
    assert bright[smaller[0] > 0].mean() > bright[smaller[0] == 0].mean() + 1


def picture_job(folder: Path, cases: list[Case], wanted: dict[str, Any], **more: Any) -> TrainingJob:
    folder.mkdir()
    return TrainingJob(
        cases, PICTURE_CLASSES, fingerprint_of(cases), asked(wanted), folder, folder.parent / "store", **more
    )


def test_the_air_around_a_body_does_not_set_its_scale(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = np.zeros((60, 60), np.uint8)
    pixels[20:40, 20:40] = rng.normal(100, 5, (20, 20)).round()
    pixels[22:28, 22:28] = 150 + np.arange(36).reshape(6, 6)  # bright, and 1 % of the image
    PILImage.fromarray(pixels).save(tmp_path / "body.png")
    PILImage.fromarray(pixels[20:40, 20:40]).save(tmp_path / "full.png")
    how = Preprocessing(channels=1, normalisation="image", without_air=True)
    image, full = read_image(tmp_path / "body.png"), read_image(tmp_path / "full.png")
    seen = preprocess(image, how)[0, 0]
    assert abs(float(seen[20:40, 20:40].mean())) < 0.05
    assert abs(float(seen[20:40, 20:40].std()) - 1) < 0.05
    assert len(np.unique(seen[22:28, 22:28])) > 30
    assert len(np.unique(preprocess(image, replace(how, without_air=False))[0, 0, 22:28, 22:28])) < 30
    # A picture without such a ground is scaled by all of it.
    assert np.array_equal(preprocess(full, how), preprocess(full, replace(how, without_air=False)))


def test_a_thing_of_one_value_on_its_ground_is_told_from_the_ground(tmp_path: Path) -> None:
    pixels = np.zeros((60, 60), np.uint8)
    pixels[20:40, 20:40] = 255
    PILImage.fromarray(pixels).save(tmp_path / "drawn.png")
    how = Preprocessing(channels=1, normalisation="image", without_air=True)
    seen = preprocess(read_image(tmp_path / "drawn.png"), how)[0, 0]
    assert seen[30, 30] - seen[0, 0] > 2


@pytest.mark.slow
def test_folds_answer_together_and_every_case_is_validated_on(tmp_path: Path) -> None:
    cases = draw(tmp_path, 6)
    events = train_pictures(tmp_path / "run", cases, folds=3, epochs=2)
    package = read_package(package_of(events))
    assert len(package.members) == 3
    assert sorted(case for fold in package.split.folds or [] for case in fold.val) == [case.id for case in cases]
    assert [point.epoch for point in curve(events)] == [1, 2, 3, 4, 5, 6]
    assert Predictor.from_package(package).predict(read_image(cases[0].image)).values.shape == (48, 48)
    # The numbers are of all cases, each predicted by the network that had not learnt from it.
    metrics = metrics_of(events)
    assert (metrics.evaluated_on, metrics.n_cases, metrics.held_out) == ("val", 6, 6)
    assert any("cross-validation" in text for text in result(events).warnings)
    used = package.decisions.refinements()
    for index, fold in enumerate(package.split.folds or []):
        own: list[Forward] = [TorchForward(network_of(package.plan, package.members[index]), "fp32")]
        for case in (case for case in cases if case.id in fold.val):
            reference = label_indices(read_mask(case.mask).values, package.plan.class_values, case.name)
            found = Predictor(own, package.plan, used).predict(read_image(case.image)).indices
            said = next(row.dice for row in metrics.per_case if row.sample == case.id)
            assert case_metrics(reference, found, 2, None)[1].dice == pytest.approx(said, abs=0.02)


@pytest.mark.slow
def test_a_warm_start_begins_with_the_earlier_weights(tmp_path: Path) -> None:
    cases = draw(tmp_path, 4)
    first = train_pictures(tmp_path / "first", cases, epochs=4)
    job = {"epochs": 1, "patch_size": 32, "batch_size": 4, "encoder": "plain-16", "learning_rate": 1e-5}
    warm: list[Event] = []
    earlier = package_of(first)
    run(picture_job(tmp_path / "warm", cases, job, warm_start=earlier), on_event=warm.append, should_stop=lambda: False)
    assert curve(warm)[0].train_loss < curve(first)[1].train_loss
    assert not any("start from" in text for text in result(warm).warnings)  # the split was the same


@pytest.mark.slow
def test_a_warm_start_that_has_seen_the_held_out_cases_is_told(tmp_path: Path) -> None:
    cases = draw(tmp_path, 4)
    quick = {"epochs": 1, "patch_size": 32, "batch_size": 4, "encoder": "plain-16"}
    sides = [StoredSplit([1, 2, 3], [4]), StoredSplit([3, 4], [2], [1])]
    package, told = None, []
    for number, split in enumerate([*sides, sides[1]]):
        events: list[Event] = []
        job = replace(picture_job(tmp_path / str(number), cases, quick, warm_start=package), split=split)
        run(job, on_event=events.append, should_stop=lambda: False)
        package = package_of(events)
        told.append([text for text in result(events).warnings if "to start from learnt from 1 of the 1" in text])
    # The third starts from the second, whose own cases are in order, and which began with the first.
    assert [len(texts) for texts in told] == [0, 1, 1]


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    cases = draw(tmp_path, 3)
    job = picture_job(tmp_path / "run", cases, {"epochs": 1})
    cases[1].image.write_bytes(b"not an image")
    with pytest.raises(TrainingError, match="case 1: "):
        run(job, on_event=lambda event: None, should_stop=lambda: False)


def test_a_stored_split_is_reused(tmp_path: Path) -> None:
    cases = draw(tmp_path, 5)
    stored = StoredSplit([2, 4], [1], [3, 5], "file")
    events: list[Event] = []
    wanted = {"epochs": 1, "patch_size": 32, "batch_size": 2}
    run(picture_job(tmp_path / "run", cases, wanted, split=stored), on_event=events.append, should_stop=lambda: False)
    assert planned(events).split == stored
    assert metrics_of(events).evaluated_on == "test"


@pytest.mark.slow
@pytest.mark.parametrize("begun", [None, -1e6])  # -1e6: over before anything was read
def test_a_short_time_budget_still_gives_a_model_and_says_that_it_was_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: float | None
) -> None:
    def rehearse(*rest: Any, **more: Any) -> Estimate:
        return replace(measure(*rest, **more), reserve_seconds=1000.0)

    monkeypatch.setattr("ml_core.training.run.rehearse", rehearse)
    wanted = {"time_budget_seconds": 60, "epochs": 1, "patch_size": 32, "batch_size": 2}
    events: list[Event] = []
    job = picture_job(tmp_path / "run", draw(tmp_path, 3), wanted)
    run(job, on_event=events.append, should_stop=lambda: False, begun=begun)
    assert metrics_of(events).n_cases == 1
    assert any("is short for this data" in text for text in result(events).warnings)
