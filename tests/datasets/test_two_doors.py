"""The platform's check and that of the command line: the same classes and the same sentences for the same files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from PIL import Image as PILImage
from pydicom.uid import UID

from datasets.check import check
from datasets.models import Dataset
from datasets.services import create_dataset_from_upload, create_version
from ml_core.dataset import findings
from ml_core.dataset.classes import label_values
from ml_core.dataset.findings import DatasetRefusedError, Issue
from ml_core.dataset.folders import Described, describe, find_cases
from ml_core.io import read_image, read_mask
from tests.synthetic import (
    COLOURS,
    Array,
    draw_pair,
    draw_volume,
    write_dicom_series,
    write_dicom_slice,
    write_jpg,
    write_nifti,
    write_palette,
    write_png,
    write_rgb_mask,
    zip_folder,
)

pytestmark = pytest.mark.django_db

Write = Callable[[Path, Array], Any]


def pictures(at: Path, write: Write, count: int = 4, *, start: int = 0, suffix: str = ".png", size: int = 48) -> None:
    """images/c<n>.png with three classes, and masks/c<n> as `write` writes their labels."""
    for index in range(start, start + count):
        image, labels = draw_pair(np.random.default_rng(index), size, classes=3)
        write_png(at / f"images/c{index}.png", image)
        write(at / f"masks/c{index}{suffix}", labels)


def volumes(at: Path, count: int = 3) -> None:
    for index in range(count):
        image, labels = draw_volume(np.random.default_rng(index), (6, 12, 10), classes=3)
        write_nifti(at / f"images/v{index}.nii.gz", image.transpose())
        write_nifti(at / f"masks/v{index}.nii.gz", labels.transpose() * np.uint8(7))


def series(at: Path) -> None:
    for index in range(2):
        image, labels = draw_volume(np.random.default_rng(index), (6, 12, 10))
        tags: dict[str, Any] = {"PatientID": f"patient-{index}"}
        write_dicom_series(at / f"images/p{index}", (image - image.min()).astype(np.uint16), **tags)
        write_nifti(at / f"masks/p{index}.nii.gz", labels.transpose(), np.diag([-0.75, -0.5, 2.0, 1.0]))


def series_with_scouts(at: Path) -> None:
    series(at)
    for index in range(2):
        tags: dict[str, Any] = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesInstanceUID": UID("1.2.3")}
        write_dicom_slice(at / f"images/p{index}/0 Übersicht.x", np.zeros((9, 9), np.uint16), **tags)


def series_with_previews(at: Path) -> None:
    series(at)
    for index in range(2):
        write_jpg(at / f"images/p{index}/preview.jpg", np.zeros((9, 9), np.uint8))


def series_under_other_endings(at: Path) -> None:
    series(at)
    for index, suffix in enumerate((".img", ".bin")):
        for number, path in enumerate(sorted((at / f"images/p{index}").iterdir())):
            path.rename(path.with_name(f"slice {number}{suffix}"))


def two_echoes(at: Path) -> None:
    """A third case whose folder holds two volumes of one series."""
    series(at)
    (at / "images/p2").mkdir()
    image, labels = draw_volume(np.random.default_rng(5), (6, 12, 10))
    for echo in (5, 9):
        for path in write_dicom_series(at.parent / "echo", image.astype(np.uint16), EchoTime=echo).iterdir():
            path.rename(at / f"images/p2/echo{echo} {path.name}")
    write_nifti(at / "masks/p2.nii.gz", labels.transpose(), np.diag([-0.75, -0.5, 2.0, 1.0]))


def names_that_say_nothing(at: Path) -> None:
    pictures(at, write_png, 5)
    for index, name in enumerate(("c0", "c1.bin", "c2.dat", "c3.img")):
        (at / f"images/c{index}.png").rename(at / "images" / name)
    (at / "masks/c1.png").rename(at / "masks/c1")


def names_that_lie(at: Path) -> None:
    pictures(at, write_png, 4)
    (at / "images/c0.png").rename(at / "images/c0.dcm")
    (at / "masks/c1.png").rename(at / "masks/c1.nii.gz")


def colours_in_another_order(at: Path) -> None:
    """The first file holds the colour with the largest number only, so that it comes first."""
    pictures(at, lambda path, labels: write_rgb_mask(path, (labels == 1) * np.uint8(1)), 1)
    pictures(at, write_rgb_mask, 3, start=1)


def numbers_among_colours(at: Path) -> None:
    pictures(at, write_rgb_mask)
    pictures(at, write_png, 2, start=4)


def volumes_among_pictures(at: Path) -> None:
    pictures(at, lambda path, labels: write_png(path, labels * np.uint8(90)))
    volumes(at, 2)


def a_picture_and_a_volume(at: Path) -> None:
    pictures(at, write_png, 1)
    volumes(at, 1)


def copies(at: Path) -> None:
    """One picture under three names: the same file, and brightened."""
    pictures(at, write_png)
    image, labels = draw_pair(np.random.default_rng(0), 48, classes=3)
    for name, pixels in (("same", image), ("brighter", (image * 0.8 + 40).astype(np.uint8))):
        write_png(at / f"images/{name}.png", pixels)
        write_png(at / f"masks/{name}.png", labels)


def bad_files(at: Path) -> None:
    pictures(at, write_png, 6)
    (at / "images/c1.png").write_bytes((at / "images/c1.png").read_bytes()[:100])
    write_png(at / "masks/c2.png", np.zeros((9, 9), np.uint8))
    (at / "masks/c3.png").unlink()
    write_png(at / "images/c4.png.png", np.zeros((48, 48), np.uint8))
    (at / "images/x.heic").write_bytes(b"x")
    write_jpg(at / "images/c0.jpg", np.zeros((48, 48), np.uint8))


def smoothed(at: Path) -> None:
    pictures(at, lambda path, labels: write_png(path, labels))
    image, _ = draw_pair(np.random.default_rng(9), 48)
    write_png(at / "masks/c1.png", image)


def too_many_classes(at: Path) -> None:
    def write(path: Path, labels: Array) -> None:
        first = int(path.stem[1:]) * 60
        write_png(path, (first + np.arange(labels.size) % 60).reshape(labels.shape).astype(np.uint8))

    pictures(at, write)


def lossy(at: Path) -> None:
    def write(path: Path, labels: Array) -> None:
        write_jpg(path, np.where(labels > 0, 255, 0).astype(np.uint8), quality=100)

    pictures(at, write, suffix=".jpg", size=128)


def stray_value(at: Path) -> None:
    pictures(at, write_png, 2, size=256)
    _, labels = draw_pair(np.random.default_rng(0), 256, classes=3)
    labels[0, 0] = 99
    write_png(at / "masks/c0.png", labels)


def named_by_patient(at: Path) -> None:
    for patient in range(5):
        for number in range(3):
            image, labels = draw_pair(np.random.default_rng(patient * 10 + number), 48)
            write_png(at / f"images/ward{patient}_slice{number}.png", image)
            write_png(at / f"masks/ward{patient}_slice{number}.png", labels)


FOLDERS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "grey": (lambda at: pictures(at, lambda path, labels: write_png(path, labels * np.uint8(100))), []),
    "palette": (lambda at: pictures(at, lambda path, labels: write_palette(path, labels, COLOURS)), []),
    "colours": (lambda at: pictures(at, write_rgb_mask), []),
    "colours in another order": (colours_in_another_order, []),
    "numbers among colours": (numbers_among_colours, ["mixed_coding"] * 2),
    "volumes": (volumes, []),
    "volumes among pictures": (volumes_among_pictures, ["mixed_dimensions"] * 2),
    "DICOM series": (series, []),
    "DICOM series with scouts": (series_with_scouts, ["localizer"] * 2),
    "DICOM series with previews": (series_with_previews, ["not_dicom"] * 2),
    "DICOM series under other endings": (series_under_other_endings, []),
    "a series of two echoes": (two_echoes, ["several_volumes"]),
    "names that say nothing": (names_that_say_nothing, []),
    "names that lie": (names_that_lie, ["wrong_extension"] * 2),
    "copies": (copies, ["duplicate_image", "near_duplicate"]),
    "bad files": (
        bad_files,
        ["duplicate_image"] * 2 + ["no_mask"] * 2 + ["shape_mismatch", "unreadable", "unsupported_format"],
    ),
    "smoothed": (smoothed, ["too_many_values"]),
    "lossy": (lossy, ["lossy_mask"] * 4),
    "stray value": (stray_value, ["rare_value"]),
    "named by patient": (named_by_patient, ["grouped_by_name"]),
}
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "one class": (lambda at: pictures(at, lambda path, labels: write_png(path, labels * 0)), "one_class"),
    "a picture and a volume": (a_picture_and_a_volume, "too_few_cases"),
    "one pair": (lambda at: pictures(at, write_png, 1), "too_few_cases"),
    "no mask fits": (
        lambda at: pictures(at, lambda path, _: write_png(path, np.zeros((9, 9), np.uint8))),
        "too_few_cases",
    ),
    "too many classes": (too_many_classes, "too_many_values"),
}


@pytest.fixture
def at(tmp_path: Path) -> Path:
    for folder in ("images", "masks"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    return tmp_path / "set"


def upload(user: Any, at: Path) -> Dataset:
    archive = SimpleUploadedFile("set.zip", zip_folder(at, at.parent / "set.zip").read_bytes())
    dataset = create_dataset_from_upload(user=user, name="set", archive=archive)
    check(dataset.pk)
    dataset.refresh_from_db()
    return dataset


def read_folders(at: Path, notes: list[Issue]) -> Described:
    cases = find_cases(at / "images", at / "masks", notes.append)
    return describe(cases, notes.append, lambda done, total: None)


def said(notes: list[Issue], at: Path) -> list[tuple[str, ...]]:
    """What the platform keeps of an issue; there are the names in the archive, here those in the folder."""
    rows = [(note.severity, note.code, note.file, note.detail) for note in notes]
    return sorted(tuple(word.replace(f"{at}/", "") for word in row) for row in rows)


def kept(dataset: Dataset) -> list[tuple[str, ...]]:
    return sorted((row["severity"], row["code"], row["file"], row["detail"]) for row in dataset.issues)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_same_files_give_the_same_classes_and_issues(user: Any, at: Path, own_media: Path, name: str) -> None:
    fill, codes = FOLDERS[name]
    fill(at)
    dataset, notes = upload(user, at), list[Issue]()
    assert dataset.status == "ready", dataset.error
    described = read_folders(at, notes)
    assert said(notes, at) == kept(dataset)
    assert sorted(note.code for note in notes) == codes
    assert described.classes == dataset.class_dicts()
    assert described.codes == dataset.fingerprint["mask_codes"]
    fingerprint = {key: value for key, value in dataset.fingerprint.items() if key not in ("grouping", "mask_codes")}
    ours = {
        key: value for key, value in described.fingerprint.to_json().items() if key not in ("grouping", "mask_codes")
    }
    assert ours == fingerprint
    samples = {sample.name: sample for sample in dataset.samples.all()}
    assert [case.name for case in described.cases] == list(samples)
    for case in described.cases:
        stored = read_mask(own_media / samples[case.name].mask_key).values
        image = read_image(case.image)
        assert np.array_equal(stored, label_values(read_mask(case.mask, like=image), case.codes))


@pytest.mark.parametrize("name", REFUSED)
def test_the_same_files_are_refused_with_the_same_sentence(user: Any, at: Path, name: str) -> None:
    fill, code = REFUSED[name]
    fill(at)
    dataset, notes = upload(user, at), list[Issue]()
    with pytest.raises(DatasetRefusedError) as caught:
        read_folders(at, notes)
    assert dataset.status == "error"
    assert caught.value.code == code
    assert dataset.error == str(caught.value).replace(f"{at}/", "")
    assert said(notes, at) == kept(dataset) == said(caught.value.issues, at)


def test_the_order_of_the_files_does_not_number_the_colours(at: Path) -> None:
    colours_in_another_order(at)
    described = read_folders(at, [])
    assert [(row["value"], row["name"], row["color"]) for row in described.classes] == [
        (0, "background", "#000000"),
        (1, "class 1", "#1ec81e"),
        (2, "class 2", "#c81e1e"),
    ]


def test_another_limit_counts_at_both_doors(user: Any, at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(at, write_png, 4)
    monkeypatch.setattr(findings, "MIN_PAIRS", 5)
    dataset = upload(user, at)
    with pytest.raises(DatasetRefusedError) as caught:
        read_folders(at, [])
    assert (dataset.status, dataset.error) == ("error", str(caught.value))
    assert "5 pairs are needed" in str(caught.value)


def test_a_stored_mask_shows_the_colours_as_numbers(user: Any, at: Path, own_media: Path) -> None:
    pictures(at, write_rgb_mask)
    [first, *_] = upload(user, at).samples.all()
    _, labels = draw_pair(np.random.default_rng(0), 48, classes=3)
    stored = np.asarray(PILImage.open(own_media / first.mask_key))
    assert np.array_equal(stored, np.array([0, 2, 1])[labels])  # green's number is smaller than red's


def test_a_sentence_about_a_series_has_the_user_s_names(user: Any, at: Path) -> None:
    series_with_scouts(at)
    [first, _] = upload(user, at).issues
    assert first["file"] == "images/p0"
    assert "0 Übersicht.x was left out" in first["detail"]
    two_echoes(at)
    [error, *_] = upload(user, at).issues
    assert (error["severity"], error["file"], error["code"]) == ("error", "images/p2", "several_volumes")
    assert "6 files such as echo5 IM000_3 (5.0); 6 files such as echo9 IM000_3 (9.0)" in error["detail"]


def test_a_later_version_keeps_a_series_with_its_scout(user: Any, at: Path) -> None:
    series_with_scouts(at)
    first = upload(user, at)
    image, _ = draw_volume(np.random.default_rng(8), (6, 12, 10))
    write_dicom_series(at / "images/p1", image.astype(np.uint16), PatientID="patient-1")
    archive = SimpleUploadedFile("set.zip", zip_folder(at, at.parent / "set.zip").read_bytes())
    second = create_version(user=user, base=first, archive=archive)
    check(second.pk)
    second.refresh_from_db()
    assert (second.status, second.error) == ("ready", None)
    assert second.changes == {"kept": 1, "added": 0, "replaced": 1, "left_out": 0}
    assert [row["code"] for row in second.issues] == ["localizer"] * 2
