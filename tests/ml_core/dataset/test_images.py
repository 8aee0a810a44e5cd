"""Which images a ZIP without masks holds."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from pydicom.uid import UID

from ml_core.dataset.images import find_images
from tests.synthetic import draw_volume, write_dicom_slice, write_nifti, write_png

PIXELS = np.zeros((9, 9), np.uint16)
Files = dict[str, bytes]


def slices(at: Path, names: str, **tags: Any) -> Files:
    return {
        name: write_dicom_slice(at / "slice", PIXELS, ImagePositionPatient=[0.0, 0.0, index], **tags).read_bytes()
        for index, name in enumerate(names.split())
    }


class Archive:
    """Counts which files are opened, and of which only the first bytes are read."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.heads: list[str] = []
        self.opened: list[str] = []

    def head(self, name: str) -> bytes:
        self.heads.append(name)
        return self.files[name][:352]

    def open(self, name: str) -> BinaryIO:
        self.opened.append(name)
        return io.BytesIO(self.files[name])


def found(files: Files, dimensions: int = 3) -> tuple[list[tuple[str, int, bool]], list[tuple[str, str]]]:
    archive = Archive(files)
    images, issues = find_images(files, dimensions, archive.head, archive.open)
    return (
        [(image.name, len(image.entries), image.is_series) for image in images],
        [(issue.code, issue.file) for issue in issues],
    )


@pytest.mark.parametrize("suffix", ["", ".dcm", ".bin", ".img", ".5", ".png"])
def test_slices_of_a_folder_are_one_image_whatever_they_are_called(tmp_path: Path, suffix: str) -> None:
    files = slices(tmp_path, " ".join(f"p/IM{number}{suffix}" for number in range(4)))
    assert found(files) == ([("p", 4, True)], [])
    alone = [(name, 1, False) for name in sorted(files)]
    assert found(files, 2) == (alone, [("slices_alone", "p/")])


def test_series_of_one_folder_are_parted_and_named_by_their_first_files(tmp_path: Path) -> None:
    files = slices(tmp_path, "p/a p/c p/e") | slices(tmp_path, "p/b p/d", SeriesInstanceUID=UID("1.2"))
    assert found(files) == ([("p/a", 3, True), ("p/b", 2, True)], [("several_series", "p/")])
    top = slices(tmp_path, "a b c")
    assert found(top) == ([("a", 3, True)], [])


def test_one_series_in_two_folders_is_two_images(tmp_path: Path) -> None:
    assert found(slices(tmp_path, "p/a p/b q/a q/b")) == ([("p", 2, True), ("q", 2, True)], [])


def test_scouts_beside_a_series_are_left_out(tmp_path: Path) -> None:
    kind = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scouts = slices(tmp_path, "p/s p/t", ImageType=kind, SeriesInstanceUID=UID("1.2"))
    images, issues = found(slices(tmp_path, "p/a p/b") | scouts)
    assert (images, issues) == ([("p", 2, True)], [("localizer", "p/s"), ("localizer", "p/t")])
    assert found(scouts) == ([("p/s", 1, False), ("p/t", 1, False)], [])


def test_files_that_are_images_by_themselves(tmp_path: Path) -> None:
    volume, _ = draw_volume(np.random.default_rng(0), (4, 6, 5))
    files = {
        "p/cine": write_dicom_slice(tmp_path / "cine", volume, SpacingBetweenSlices=2.0).read_bytes(),
        "p/broken.dcm": b"nothing that can be read",
        "p/seg": write_dicom_slice(tmp_path / "seg", PIXELS, Modality="SEG").read_bytes(),
        "p/v": write_nifti(tmp_path / "v.nii", volume).read_bytes(),
        "p/x.old": write_png(tmp_path / "x.png", PIXELS.astype(np.uint8)).read_bytes(),
        "p/notes": b"text",
        "p/list.json": b"{}",
        "p/photo.heic": b"ftypheic",
    }
    images, issues = found(files)
    assert images == [(name, 1, False) for name in ("p/broken.dcm", "p/cine", "p/seg", "p/v", "p/x.old")]
    assert issues == [("unsupported_type", f"p/{name}") for name in ("list.json", "notes", "photo.heic")]


def test_the_pixels_of_no_file_and_the_first_bytes_of_few_are_read(tmp_path: Path) -> None:
    picture = write_png(tmp_path / "x.png", PIXELS.astype(np.uint8)).read_bytes()
    pictures = {f"{folder}/{number}.png": picture for folder in "pq" for number in range(30)}
    archive = Archive(pictures | slices(tmp_path, "r/1.dcm r/2.dcm"))
    images, _ = find_images(archive.files, 3, archive.head, archive.open)
    assert len(images) == 61
    assert archive.heads == ["p/0.png", "q/0.png"]
    assert archive.opened == ["r/1.dcm", "r/2.dcm"]
