"""The command line and the Python of a notebook, from folders of drawn pictures to a model and back."""

from __future__ import annotations

import csv
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

import ml_core
from ml_core import memory
from ml_core.dataset.findings import Issue
from ml_core.dataset.folders import describe, find_cases, find_images
from ml_core.errors import MLError
from ml_core.front.command_line import main
from ml_core.front.progress import ProgressBar
from ml_core.planning.hyperparameters import specs
from ml_core.prediction.package import read_package
from ml_core.training.events import EpochEnded, Event
from tests.environment import REPOSITORY
from tests.synthetic import dicom_dataset, draw_pair, write_png, write_rgb_mask

TINY = ["--epochs", "1", "--patch-size", "64", "--batch-size", "2"]


def folders(at: Path, count: int = 10) -> tuple[Path, Path]:
    """images/case<n>.png and masks/case<n>_mask.png with the values 0 and 255."""
    images, masks, rng = at / "images", at / "masks", np.random.default_rng(0)
    images.mkdir(parents=True)
    masks.mkdir()
    for number in range(1, count + 1):
        image, labels = draw_pair(rng, 48)
        write_png(images / f"case{number}.png", image)
        write_png(masks / f"case{number}_mask.png", labels * np.uint8(255))
    return images, masks


def train_command(out: Path, images: Path, masks: Path, *more: str) -> int:
    return main(["train", "--images", str(images), "--masks", str(masks), "--out", str(out), *TINY, *more])


@pytest.mark.slow
def test_train_evaluate_and_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, masks = folders(tmp_path)
    out = tmp_path / "model"
    assert train_command(out, images, masks, "--test-fraction", "0.2") == 0
    assert {path.name for path in out.iterdir()} == {
        "model.zip", "metrics.json", "curve.csv", "plan.json", "splits_final.json", "training.json", "cases"
    }  # fmt: skip
    [split] = json.loads((out / "splits_final.json").read_text())
    assert sorted(split["train"] + split["val"] + split["test"]) == sorted(f"case{n}" for n in range(1, 11))
    metrics = json.loads((out / "metrics.json").read_text())
    assert {row["name"] for row in metrics["per_case"]} == set(split["test"])
    assert len(list((out / "cases").glob("*.png"))) == len(split["test"])
    with (out / "curve.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1"]
    printed = capsys.readouterr()
    assert "class 255" in printed.out
    for stage in ("reading: 100%", "preparing: 100%", "training: 100%", "evaluating: 100%"):
        assert stage in printed.err

    assert train_command(out, images, masks) == 2
    assert "finished training" in capsys.readouterr().err

    model = str(out / "model.zip")
    scored = ["evaluate", "--model", model, "--images", str(images), "--masks", str(masks)]
    assert main([*scored, "--out", str(tmp_path / "scores"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "scores/metrics.json").read_text())
    assert len(list((tmp_path / "scores/cases").glob("*.png"))) == 10

    assert main(["predict", "--model", model, "--out", str(tmp_path / "found"), str(images)]) == 0
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == sorted(f"case{n}.png" for n in range(1, 11))
    labels = np.asarray(PILImage.open(tmp_path / "found/case1.png"))
    assert labels.shape == (48, 48)
    assert set(np.unique(labels)) <= {0, 255}


@pytest.mark.slow
def test_five_lines_of_python_with_colours_and_a_test_set(tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    rng = np.random.default_rng(0)
    for folder in (images, masks, tmp_path / "images2", tmp_path / "masks2"):
        folder.mkdir()
    for index in range(5):
        image, labels = draw_pair(rng, 64, classes=3)
        side = "2" if index == 4 else ""
        write_png(tmp_path / f"images{side}" / f"{index}.png", image)
        write_rgb_mask(tmp_path / f"masks{side}" / f"{index}.png", labels)
    tiny: dict[str, Any] = {"epochs": 1, "patch_size": 64, "batch_size": 2}
    tests = (tmp_path / "images2", tmp_path / "masks2")
    model = ml_core.train(
        images, masks, out=tmp_path / "model", test_images=tests[0], test_masks=tests[1], progress=False, **tiny
    )
    assert model.metrics
    assert [row.name for row in model.metrics.per_case] == ["test_4"]
    assert model.metrics.evaluated_on == "test"
    # As on the platform: in the order of the colours.
    codes = {"#000000": 0, "#1ec81e": 1, "#c81e1e": 2}
    assert (model.plan.class_values, model.mask_codes) == ([0, 1, 2], codes)
    assert model.plan.class_colors == ["#000000", "#1ec81e", "#c81e1e"]
    labels = model.predict(images / "0.png")
    assert labels.shape == (64, 64)
    assert set(np.unique(labels)) <= {0, 1, 2}
    again = model.evaluate(*tests, progress=False)
    assert again.dice == pytest.approx(model.metrics.dice, abs=0.02)
    [written] = ml_core.predict(model, images / "0.png", tmp_path / "found", progress=False)
    coded = np.asarray(PILImage.open(written))  # as the masks are
    assert np.array_equal(coded, np.array([(0, 0, 0), (30, 200, 30), (200, 30, 30)])[labels])


@pytest.mark.slow
def test_copies_in_the_test_set_are_told(tmp_path: Path) -> None:
    images, masks, tests = tmp_path / "images", tmp_path / "masks", (tmp_path / "images2", tmp_path / "masks2")
    rng = np.random.default_rng(0)
    for folder in (images, masks, *tests):
        folder.mkdir()
    for index in range(5):
        image, labels = draw_pair(rng, 64)
        write_png(images / f"{index}.png", image)
        write_png(masks / f"{index}.png", labels)
        if index > 2:  # two, mirrored: one of them may be validated on, but not both
            write_png(tests[0] / f"{index}.png", image[::-1])
            write_png(tests[1] / f"{index}.png", labels[::-1])
    tiny: dict[str, Any] = {"epochs": 1, "patch_size": 64, "batch_size": 2, "progress": False}
    ml_core.train(images, masks, out=tmp_path / "model", test_images=tests[0], test_masks=tests[1], **tiny)
    told = read_package(tmp_path / "model" / "model.zip").facts["warnings"]
    assert any("of the 2 held-out images look like one that is learnt from" in text for text in told)
    ml_core.train(images, masks, out=tmp_path / "other", **tiny)
    told = read_package(tmp_path / "other" / "model.zip").facts["warnings"]
    assert not any("look like" in text for text in told)


@pytest.mark.slow
def test_ctrl_c_keeps_the_best_weights_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, masks = folders(tmp_path, 4)
    shown = ProgressBar.on_event

    def interrupt(self: ProgressBar, event: Event) -> None:
        shown(self, event)
        if isinstance(event, EpochEnded):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ProgressBar, "on_event", interrupt)
    handler = signal.getsignal(signal.SIGINT)
    out = tmp_path / "model"
    assert train_command(out, images, masks, "--epochs", "3") == 130
    assert signal.getsignal(signal.SIGINT) is handler
    assert not ml_core.Model(out).metrics
    assert ml_core.Model(out).predict(images / "case1.png").shape == (48, 48)
    assert "go on" in capsys.readouterr().err

    monkeypatch.setattr(ProgressBar, "on_event", shown)
    assert train_command(out, images, masks, "--epochs", "4") == 2
    assert "other images or settings" in capsys.readouterr().err
    assert train_command(out, images, masks, "--epochs", "3") == 0
    with (out / "curve.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    assert not (out / ".store").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--patch-size", "7"], "patch_size"),
        (["--nnunet-raw", "x"], "missing, or too many"),
        (["--test-images", "x"], "Give both"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str) -> None:
    images, masks = folders(tmp_path, 2)
    assert train_command(tmp_path / "model", images, masks, *more) == 2
    assert said in capsys.readouterr().err


def test_unknown_labels_of_a_test_set_are_found_before_the_training(tmp_path: Path) -> None:
    images, masks = folders(tmp_path, 3)
    images2, masks2 = folders(tmp_path / "other", 1)
    write_png(next(masks2.iterdir()), np.full((48, 48), 7, np.uint8))
    with pytest.raises(MLError, match=r"\[7\]"):
        ml_core.train(images, masks, out=tmp_path / "m", test_images=images2, test_masks=masks2, progress=False)
    assert not (tmp_path / "m").exists()


def test_cases_are_found_described_and_left_out_with_a_reason(tmp_path: Path) -> None:
    images, masks = folders(tmp_path, 4)
    write_png(masks / "case2_mask.png", np.zeros((9, 9), np.uint8))
    write_png(images / "lonely.png", np.zeros((48, 48), np.uint8))
    (images / "README.md").write_text("no image")
    notes: list[Issue] = []
    cases = find_cases(images, masks, notes.append)
    assert [case.name for case in cases] == ["case1", "case2", "case3", "case4"]
    described = describe(cases, notes.append, lambda done, total: None, {255: "disc"})
    assert [case.name for case in described.cases] == ["case1", "case3", "case4"]
    assert [(item["value"], item["name"]) for item in described.classes] == [(0, "background"), (255, "disc")]
    assert described.fingerprint.n_cases == 3
    assert [(note.code, Path(note.file.partition(" and ")[0]).name) for note in notes] == [
        ("no_mask", "lonely.png"), ("shape_mismatch", "case2.png")
    ]  # fmt: skip
    key = cases[0].key
    write_png(cases[0].image, np.ones((48, 48), np.uint8))
    assert find_cases(images, masks, notes.append)[0].key != key


def test_a_folder_of_slices_is_one_image_with_a_file_or_a_folder_as_mask(tmp_path: Path) -> None:
    for patient in ("P1", "P2"):
        for side in ("images", "masks"):
            folder = tmp_path / side / patient
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = np.zeros((16, 16), np.uint16)
                pixels[4:9, 4:9] = 1
                place = {"InstanceNumber": number + 1, "ImagePositionPatient": [0, 0, 2.0 * number]}
                dicom_dataset(pixels, PatientID=patient, **place).save_as(folder / f"{number}.dcm")
    notes: list[Issue] = []
    cases = find_cases(tmp_path / "images", tmp_path / "masks", notes.append)
    described = describe(cases, notes.append, lambda done, total: None)
    assert [note.code for note in notes] == ["near_duplicate"]  # both are drawn alike
    assert [(case.name, case.image.name, case.group) for case in described.cases] == [
        ("P1", "P1", "patient 1"), ("P2", "P2", "patient 2")
    ]  # fmt: skip
    assert described.fingerprint.dimensions == 3
    assert [name for name, _ in find_images([tmp_path / "images"], 3)] == ["P1", "P2"]
    assert len(find_images([tmp_path / "images/P1"], 2)) == 3


def test_names_of_images_lose_a_channel_that_all_have_and_are_unique(tmp_path: Path) -> None:
    for folder, names in {
        "a": ("x_0000.png", "y_0000.png"),
        "b": ("f_0000.png", "f_0001.png"),
        "c": ("x.tif",),
    }.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    found = find_images([tmp_path / "a", tmp_path / "b", tmp_path / "c/x.tif"], 2)
    assert [name for name, _ in found] == ["x_1", "y", "f_0000", "f_0001", "x_5"]


def test_every_hyperparameter_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in text for name in specs())


@pytest.mark.slow
def test_importing_ml_core_loads_no_torch() -> None:
    code = "import ml_core, ml_core.dataset.pairing, ml_core.__main__, sys; print('torch' in sys.modules, 'train' in dir(ml_core))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "True"]


def test_the_environment_of_a_training_tunes_glibc_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda *given: calls.append(given))
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv(memory.VARIABLE, raising=False)
    assert memory.tuned_environment()[memory.VARIABLE] == memory.TUNABLES
    memory.restart_tuned()
    [(program, arguments, environment)] = calls
    assert (program, arguments[1:]) == (sys.executable, sys.orig_argv[1:])
    monkeypatch.setattr(os, "environ", environment)
    memory.restart_tuned()
    assert len(calls) == 1
    monkeypatch.setattr(os, "environ", {memory.VARIABLE: "glibc.malloc.check=1"})
    spins = {"GOMP_SPINCOUNT": memory.SPINS}
    assert memory.tuned_environment() == {memory.VARIABLE: "glibc.malloc.check=1", **spins}
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert memory.tuned_environment() == spins
