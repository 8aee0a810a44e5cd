"""Damaged, mislabelled and foreign files: always an ImageError with code, reason and cure."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from ml_core.io import SUPPORTED_SUFFIXES, ImageError, read_image, read_mask, stem, suffix_of
from ml_core.io.formats import FORMATS
from tests.ml_core.io.test_raster import IMAGE, LABELS, code_of
from tests.synthetic import (
    Array,
    draw_volume,
    write_bmp,
    write_dicom_multiframe,
    write_dicom_series,
    write_dicom_slice,
    write_jpg,
    write_nifti,
    write_palette,
    write_png,
    write_tiff,
    zip_folder,
)

# What Pillow and pydicom remark on damaged files, besides failing.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def _tifffile(path: Path, array: Array, **options: Any) -> Path:
    tifffile.imwrite(path, array, photometric="minisblack", **options)
    return path


VOLUME, _ = draw_volume(np.random.default_rng(4), (5, 6, 7))
WRITERS: dict[str, Callable[[Path], Path]] = {
    "a.png": lambda path: write_png(path, IMAGE),
    "p.png": lambda path: write_palette(path, LABELS),
    "a.jpg": lambda path: write_jpg(path, IMAGE),
    "a.tif": lambda path: write_tiff(path, IMAGE),
    "z.tif": lambda path: write_tiff(path, [IMAGE, IMAGE], compression="tiff_deflate"),
    "t.tif": lambda path: _tifffile(path, np.stack([IMAGE] * 3), tile=(16, 16), compression="zlib", predictor=True),
    "j.tif": lambda path: _tifffile(path, np.stack([IMAGE] * 3), compression="jpeg"),
    "k.tif": lambda path: _tifffile(path, np.stack([IMAGE] * 3), compression="jpeg2000"),
    "o.tif": lambda path: _tifffile(
        path, np.stack([IMAGE] * 6).reshape(2, 3, 30, 40), ome=True, metadata={"axes": "ZCYX"}
    ),
    "i.tif": lambda path: _tifffile(path, np.stack([IMAGE] * 3), imagej=True, metadata={"axes": "CYX"}),
    "a.bmp": lambda path: write_bmp(path, IMAGE),
    "a.nii": lambda path: write_nifti(path, VOLUME),
    "a.nii.gz": lambda path: write_nifti(path, VOLUME),
    "a.dcm": lambda path: write_dicom_slice(path, IMAGE),
    "m.dcm": lambda path: write_dicom_multiframe(path, VOLUME),
    "a.zip": lambda path: zip_folder(write_dicom_series(path.parent / "series", VOLUME), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_cut_off_anywhere(tmp_path: Path, name: str) -> None:
    whole = WRITERS[name](tmp_path / name).read_bytes()
    read_image(tmp_path / name)
    for share in (0.02, 0.2, 0.5, 0.8):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
        assert code_of(tmp_path / name) in ("unreadable", "wrong_extension", "no_pixels", "empty_file"), share
        code_of(tmp_path / name, mask=True)


@pytest.mark.parametrize("name", WRITERS)
def test_files_with_damaged_bytes_never_raise_anything_else(tmp_path: Path, name: str) -> None:
    whole = WRITERS[name](tmp_path / name).read_bytes()
    rng = np.random.default_rng(5)
    refused = 0
    for _ in range(40):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 600), 8):
            damaged[place] = rng.integers(256)
        (tmp_path / name).write_bytes(damaged)
        for read in (read_image, read_mask):
            try:
                read(tmp_path / name)
            except ImageError as error:
                refused += bool(error.code and error.reason and error.cure)
    assert refused > 0


@pytest.mark.parametrize("suffix", [*SUPPORTED_SUFFIXES, ".zip", ".xyz", ""])
def test_foreign_content_is_refused_under_every_extension(tmp_path: Path, suffix: str) -> None:
    for index, content in enumerate([b"", b"x", pickle.dumps({"a": [1, 2]}), b"hello world\n" * 100, bytes(2000)]):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(content)
        assert (code_of(path) == "empty_file") == (index == 0)
        code_of(path, mask=True)


@pytest.mark.parametrize(
    ("content", "claimed"), [("a.png", "a.dcm"), ("a.dcm", "a.png"), ("a.nii.gz", "a.jpg"), ("a.zip", "a.nii.gz")]
)
def test_content_of_another_family_is_read_and_said(tmp_path: Path, content: str, claimed: str) -> None:
    right = WRITERS[content](tmp_path / content)
    wrong = tmp_path / ("x" + claimed)
    wrong.write_bytes(right.read_bytes())
    found = read_image(wrong)
    assert np.array_equal(found.array, read_image(right).array)
    (notice,) = found.notices
    assert notice.code == "wrong_extension"
    assert re.match(r"The name says an? .* file, and the content is an? .* file\.", notice.text)
    assert read_image(right).notices == ()


@pytest.mark.parametrize("name", ["scan", "scan.bin", "1.2.840.113619.5", "scan.img", "scan.old"])
@pytest.mark.parametrize("content", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.nii", "a.nii.gz", "a.dcm", "a.zip"])
def test_content_decides_where_the_name_says_nothing(tmp_path: Path, content: str, name: str) -> None:
    right = WRITERS[content](tmp_path / content)
    (tmp_path / name).write_bytes(right.read_bytes())
    found = read_image(tmp_path / name)
    assert np.array_equal(found.array, read_image(right).array)
    assert found.notices == ()
    assert read_mask(tmp_path / name).notices == () if content == "a.png" else True


def test_a_mask_under_a_wrong_name_is_said(tmp_path: Path) -> None:
    mask = read_mask(write_png(tmp_path / "m.nii", LABELS))
    assert np.array_equal(mask.values, LABELS)
    assert [notice.code for notice in mask.notices] == ["wrong_extension"]


def test_within_the_raster_family_the_content_decides(tmp_path: Path) -> None:
    path = write_jpg(tmp_path / "a.png", np.where(LABELS > 0, 255, 0).astype(np.uint8), quality=100)
    assert read_mask(path).lossy


def test_missing_file(tmp_path: Path) -> None:
    assert code_of(tmp_path / "nothing.png") == "not_found"
    (tmp_path / "empty").mkdir()
    assert code_of(tmp_path / "empty") == "no_dicom"


@pytest.mark.parametrize(
    ("name", "expected", "suffix"),
    [
        ("images/a.b.NII.GZ", "a.b", ".nii.gz"),
        ("a.nii", "a", ".nii"),
        ("C:\\x\\scan.DCM", "scan", ".dcm"),
        ("1.2.840.5", "1.2.840.5", ".5"),
        ("x.jpeg", "x", ".jpeg"),
        ("a/cell.1.OME.tif", "cell.1", ".tif"),
        (".ome.tif", ".ome", ".tif"),
        ("x.tar.gz", "x.tar.gz", ".gz"),
        (".png", ".png", ""),
        ("series/", "series", ""),
    ],
)
def test_stem_and_suffix(name: str, expected: str, suffix: str) -> None:
    assert (stem(name), suffix_of(name)) == (expected, suffix)


def test_only_nifti_and_series_are_made_for_volumes() -> None:
    assert {suffix for suffix, item in FORMATS.items() if item.is_volume} == {".nii", ".nii.gz", ".zip"}
    assert FORMATS[".nii.gz"].mime == "application/gzip"
