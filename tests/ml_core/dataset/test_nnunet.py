"""nnU-Net's raw layout and splits, written and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as PILImage

import ml_core
from ml_core.dataset.case import Case
from ml_core.dataset.folders import describe
from ml_core.dataset.nnunet import NnunetError, export_raw, read_raw, read_splits, write_splits
from ml_core.dataset.reading import Reading
from ml_core.dataset.splits import StoredSplit
from ml_core.front.command_line import main
from tests.ml_core.front.test_command_line import folders
from tests.synthetic import draw_volume, write_nifti, write_png

AFFINE = np.array([[-1.5, 0, 0, 40], [0, 0.5, 0, -20], [0, 0, 3, 7], [0, 0, 0, 1]])


def export(at: Path, out: Path) -> int:
    return main(["export-nnunet", "--images", str(at / "images"), "--masks", str(at / "masks"), "--out", str(out)])


def raw(at: Path, **changes: Any) -> Path:
    """A raw dataset of two tiny pictures in the layout's own words."""
    for folder in ("imagesTr", "labelsTr"):
        (at / folder).mkdir(parents=True)
    for name in ("a", "b"):
        write_png(at / "imagesTr" / f"{name}_0000.png", np.zeros((8, 8), np.uint8))
        write_png(at / "labelsTr" / f"{name}.png", np.eye(8, dtype=np.uint8))
    document = {"channel_names": {"0": "grey"}, "labels": {"background": 0, "line": 1}, "file_ending": ".png"}
    (at / "dataset.json").write_text(json.dumps(document | changes))
    return at


def test_pictures_go_out_as_png_with_consecutive_labels_and_come_in_again(tmp_path: Path) -> None:
    images, masks = folders(tmp_path, 3)
    out = tmp_path / "nnUNet_raw/Dataset007_Discs"
    assert export(tmp_path, out) == 0
    assert json.loads((out / "dataset.json").read_text()) == {
        "channel_names": {"0": "greyscale"},
        "labels": {"background": 0, "class 255": 1},
        "numTraining": 3,
        "file_ending": ".png",
    }
    assert sorted(path.name for path in (out / "imagesTr").iterdir()) == [f"case{n}_0000.png" for n in (1, 2, 3)]
    for number in (1, 2, 3):
        source, copy = (
            PILImage.open(path) for path in (masks / f"case{number}_mask.png", out / f"labelsTr/case{number}.png")
        )
        assert np.array_equal(np.asarray(source) // 255, np.asarray(copy))
        source, copy = (
            PILImage.open(path) for path in (images / f"case{number}.png", out / f"imagesTr/case{number}_0000.png")
        )
        assert np.array_equal(np.asarray(source), np.asarray(copy))
    cases, names, reading = read_raw(out)
    assert [case.name for case in cases] == ["case1", "case2", "case3"]
    assert names == {0: "background", 1: "class 255"}
    assert reading == Reading(0, [], [], objects=False)
    assert export(tmp_path, out) == 2  # not empty
    assert export(tmp_path, tmp_path / "Discs") == 2  # no name for nnU-Net


def test_colour_stays_colour(tmp_path: Path) -> None:
    images, _ = folders(tmp_path, 2)
    for path in images.iterdir():
        write_png(path, np.random.default_rng(0).integers(0, 255, (48, 48, 3)).astype(np.uint8))
    assert export(tmp_path, tmp_path / "Dataset001_Colour") == 0
    document = json.loads((tmp_path / "Dataset001_Colour/dataset.json").read_text())
    assert list(document["channel_names"].values()) == ["R", "G", "B"]
    copy = np.asarray(PILImage.open(tmp_path / "Dataset001_Colour/imagesTr/case1_0000.png"))
    assert np.array_equal(copy, np.asarray(PILImage.open(images / "case1.png")))


def test_volumes_go_out_as_nifti_where_they_were_in_space(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for name in ("a", "b"):
        image, labels = draw_volume(rng, (6, 10, 8), classes=3)
        write_nifti(tmp_path / f"images/{name}.nii.gz", image.transpose(), AFFINE)
        write_nifti(tmp_path / f"masks/{name}.nii.gz", labels.transpose() * 2, AFFINE)
    out = tmp_path / "Dataset002_Balls"
    assert export(tmp_path, out) == 0
    assert json.loads((out / "dataset.json").read_text())["labels"] == {"background": 0, "class 2": 1, "class 4": 2}
    for source, copy, factor in (("images/a", "imagesTr/a_0000", 1), ("masks/a", "labelsTr/a", 2)):
        before, after = (nib.load(path) for path in (tmp_path / f"{source}.nii.gz", out / f"{copy}.nii.gz"))
        turned: Any = nib.as_closest_canonical(before)
        assert np.array_equal(np.asarray(turned.dataobj), np.asarray(after.dataobj) * factor)  # type: ignore[attr-defined]  # nibabel types the image loosely
        assert np.allclose(turned.affine, after.affine)  # type: ignore[attr-defined]  # nibabel types the image loosely


def test_an_ignored_label_is_read_and_written(tmp_path: Path) -> None:
    folder = raw(tmp_path / "raw", labels={"background": 0, "line": 1, "ignore": 2})
    for path in (folder / "labelsTr").iterdir():
        mask = np.array(PILImage.open(path))
        mask[:2] = 2
        PILImage.fromarray(mask).save(path)
    cases, names, reading = read_raw(folder)
    assert (names, reading.ignore) == ({0: "background", 1: "line"}, [2])
    described = describe(cases, lambda issue: None, lambda done, total: None, names, reading)
    assert ([item["name"] for item in described.classes], described.fingerprint.ignored) == (
        ["background", "line"],
        [2],
    )
    export_raw(described, tmp_path / "Dataset001_Again", lambda done, total: None)
    again = json.loads((tmp_path / "Dataset001_Again/dataset.json").read_text())
    assert again["labels"] == {"background": 0, "line": 1, "ignore": 2}
    written = np.array(PILImage.open(tmp_path / f"Dataset001_Again/labelsTr/{cases[0].name}.png"))
    assert np.array_equal(written, np.array(PILImage.open(cases[0].mask)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "regions"),
        ({"labels": [0, 1]}, "not of the right form"),
        ({"file_ending": ".nii.gz"}, "no files"),
    ],
)
def test_what_cannot_be_trained_here_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(NnunetError, match=said):
        read_raw(raw(tmp_path / "raw", **changes))


def test_of_several_channels_one_is_chosen(tmp_path: Path) -> None:
    folder = raw(tmp_path / "raw", channel_names={"0": "T1", "1": "FLAIR"})
    assert [case.image.name for case in read_raw(folder)[0]] == [
        "a_0000.png",
        "b_0000.png",
    ]  # one file: all channels in it
    for name in ("a", "b"):
        write_png(folder / "imagesTr" / f"{name}_0001.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(NnunetError, match=r"0 \(T1\), 1 \(FLAIR\).*--channel"):
        read_raw(folder)
    assert [case.image.name for case in read_raw(folder, channel=1)[0]] == ["a_0001.png", "b_0001.png"]


@pytest.mark.slow
def test_a_training_takes_names_and_splits_over(tmp_path: Path) -> None:
    folders(tmp_path, 5)
    out = tmp_path / "Dataset001_Discs"
    export(tmp_path, out)
    document = json.loads((out / "dataset.json").read_text())
    document["labels"] = {"background": 0, "disc": 1, "never drawn": 2}
    (out / "dataset.json").write_text(json.dumps(document))
    splits = tmp_path / "splits_final.json"
    fold = {"train": ["case1", "case3", "case5"], "val": ["case2", "case4"]}
    splits.write_text(json.dumps([{"train": ["case1"], "val": ["case2"]}, fold]))
    model = ml_core.train(nnunet_raw=out, out=tmp_path / "model", splits=splits, fold=1, progress=False,
                          epochs=1, patch_size=64, batch_size=2)  # fmt: skip
    assert model.plan.class_names == ["background", "disc"]
    assert json.loads((tmp_path / "model/splits_final.json").read_text()) == [fold]
    assert model.metrics
    assert {row.name for row in model.metrics.per_case} == {"case2", "case4"}
    assert model.metrics.evaluated_on == "val"


def test_splits_come_back_as_they_went(tmp_path: Path) -> None:
    cases = [Case(number, name, tmp_path, tmp_path) for number, name in enumerate("abcd", start=1)]
    path = tmp_path / "splits_final.json"
    split = StoredSplit([2, 1], [3], [4])
    write_splits(path, split, cases)
    assert json.loads(path.read_text()) == [{"train": ["b", "a"], "val": ["c"], "test": ["d"]}]
    assert read_splits(path, 0, cases) == split


@pytest.mark.parametrize(
    ("folds", "said"),
    [
        ({}, "not a list of splits"),
        ([{"train": ["a"], "val": ["a"]}], "names a case twice"),
        ([{"train": ["a"], "val": ["z"]}], "names that are no case: z"),
        ([{"train": ["a"], "val": []}], "none to validate on"),
        ([], "no fold 0"),
    ],
)
def test_bad_splits_are_refused(tmp_path: Path, folds: Any, said: str) -> None:
    (tmp_path / "s.json").write_text(json.dumps(folds))
    with pytest.raises(NnunetError, match=said):
        read_splits(tmp_path / "s.json", 0, [Case(1, "a", tmp_path, tmp_path)])
