"""Which files of a folder make a volume, in which order, and what is said of the others."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from ml_core.io import ImageError, read_image, read_mask
from ml_core.io.content import is_bare_dicom, kind_of, suffix_by_content
from tests.ml_core.io.test_raster import IMAGE, code_of
from tests.synthetic import (
    SERIES_UID,
    Array,
    dicom_dataset,
    draw_volume,
    save_dicom,
    write_dicom_multiframe,
    write_dicom_slice,
    write_png,
)

VOLUME, LABELS = draw_volume(np.random.default_rng(3), (9, 8, 10), classes=3)
UPRIGHT = np.s_[:, ::-1, ::-1]  # RAS of slices whose rows run to the left and columns to the back
WORDS = IMAGE.astype(np.uint16) * 10
ALONG: dict[str, list[float]] = {
    "axial": [1, 0, 0, 0, 1, 0],
    "sagittal": [0, 1, 0, 0, 0, -1],
    "oblique": [1, 0, 0, 0, 0.8, 0.6],
}


def write(folder: Path, volume: Array = VOLUME, *, name: str = "{:03}.dcm", **tags: Any) -> Path:
    """One file per slice, 2 mm apart along z; files are named by their place unless `name` says otherwise."""
    folder.mkdir(exist_ok=True)
    for index, array in enumerate(volume):
        each = {"InstanceNumber": index + 1, "ImagePositionPatient": [0.0, 0.0, 2.0 * index], **tags}
        write_dicom_slice(folder / name.format(index), array, **each)
    return folder


def codes(path: Path) -> list[str]:
    return [notice.code for notice in read_image(path).notices]


def refusal(path: Path) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_image(path)
    return caught.value


def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return folder.with_suffix(".zip")


# The order.


@pytest.mark.parametrize("orientation", [*ALONG, None])
@pytest.mark.parametrize("order", ["names", "numbers", "backwards"])
def test_positions_give_the_order_and_neither_names_nor_numbers_do(
    tmp_path: Path, orientation: str | None, order: str
) -> None:
    along: list[float] = ALONG[orientation or "axial"]
    normal = np.cross(along[:3], along[3:])
    shuffled = np.random.default_rng(1).permutation(len(VOLUME))
    folder = tmp_path / "s"
    folder.mkdir()
    for place, array in enumerate(VOLUME):
        number = {"names": place, "numbers": int(shuffled[place]), "backwards": len(VOLUME) - place}[order]
        name = f"{shuffled[place] if order == 'names' else number:03}"
        tags = {"InstanceNumber": number, "ImagePositionPatient": (normal * 2.0 * place).tolist()}
        write_dicom_slice(folder / name, array, **tags, ImageOrientationPatient=along if orientation else None)
    for path in (folder, zipped(folder)):
        found = read_image(path)
        source = found.grid.source
        assert source is not None
        stored = found.array[0] if source.axis == 0 else np.moveaxis(found.array[0], source.axis, 0)
        sums = [int(array.sum(dtype=np.int64)) for array in stored]
        expected = [int(array.sum(dtype=np.int64)) for array in VOLUME]
        assert sums in (expected, expected[::-1])
        assert found.spacing is not None
        assert found.spacing[source.axis] == pytest.approx(2.0)
        assert [notice.code for notice in found.notices] == ([] if orientation else ["no_orientation"])


def test_without_orientation_the_main_direction_of_the_positions_counts(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    for place, array in enumerate(VOLUME):
        # The slices go backwards along x, tilted a little.
        position = [-3.0 * place, 0.5 * place, 0.0]
        write_dicom_slice(
            folder / f"{place}", array, ImagePositionPatient=position, ImageOrientationPatient=None, InstanceNumber=7
        )
    found = read_image(folder)
    assert np.array_equal(found.array[0], VOLUME[::-1][UPRIGHT])
    assert found.spacing is not None
    assert found.spacing[0] == pytest.approx(np.hypot(3.0, 0.5))
    write_dicom_slice(folder / "4", VOLUME[4], ImagePositionPatient=[-9.0, 1.5, 0.0], ImageOrientationPatient=None)
    assert code_of(folder) == "duplicate_position"


def test_positions_that_are_all_the_same_without_orientation_say_nothing(tmp_path: Path) -> None:
    tags: dict[str, Any] = {"ImageOrientationPatient": None, "ImagePositionPatient": [0.0, 0.0, 0.0]}
    found = read_image(write(tmp_path / "s", name="{:03}", **tags))
    assert np.array_equal(found.array[0], VOLUME[UPRIGHT])
    assert [notice.code for notice in found.notices] == ["no_position"]


def test_instance_numbers_order_slices_without_positions_and_it_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    for place, array in enumerate(VOLUME):
        tags: dict[str, Any] = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
        write_dicom_slice(folder / f"{99 - place}", array, InstanceNumber=place + 1, **tags)
    found = read_image(folder)
    assert np.array_equal(found.array[0], VOLUME[UPRIGHT])
    assert [notice.code for notice in found.notices] == ["no_position"]
    write_dicom_slice(folder / "99", VOLUME[0], InstanceNumber=4, **tags)
    assert code_of(folder) == "no_position"


# What is left out.


@pytest.mark.parametrize("tags", [{"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, {}])
@pytest.mark.parametrize("series", [SERIES_UID, "1.2.3"])
def test_a_scout_is_left_out_and_named(tmp_path: Path, tags: dict[str, Any], series: str) -> None:
    folder = write(tmp_path / "s")
    scout = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "SeriesInstanceUID": UID(series), **tags}
    write_dicom_slice(folder / "a scout", VOLUME[0], **scout)
    for path in (folder, zipped(folder)):
        found = read_image(path)
        assert np.array_equal(found.array[0], VOLUME[UPRIGHT])
        (notice,) = found.notices
        assert notice.code == ("localizer" if tags else "odd_slices")
        assert "a scout was left out" in notice.text


def test_masks_leave_scouts_out_too(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", LABELS)
    write_dicom_slice(folder / "scout", LABELS[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    mask = read_mask(folder)
    assert np.array_equal(mask.values, LABELS[UPRIGHT])
    assert [notice.code for notice in mask.notices] == ["localizer"]


def test_several_scouts_are_counted_and_a_folder_of_scouts_alone_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "s")
    for number in range(7):
        write_dicom_slice(folder / f"x{number}", VOLUME[0][:4], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (notice,) = read_image(folder).notices
    assert "x0, x1, x2, x3, x4 and 2 more were left out" in notice.text
    assert codes(write(tmp_path / "scouts", ImageType=["DERIVED", "SECONDARY", "LOCALIZER"])) == []


def test_an_odd_file_among_few_is_no_scout(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", VOLUME[:6])
    write_dicom_slice(folder / "odd", VOLUME[0], ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    error = refusal(folder)
    assert error.code == "mixed_orientation"
    assert "6 files such as 000.dcm" in error.reason
    assert "1 file, odd" in error.reason


def test_localizers_that_outnumber_the_rest_are_not_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", VOLUME[:3], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_dicom_slice(folder / "other", VOLUME[0], ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    assert refusal(folder).code == "mixed_orientation"


def test_many_kinds_are_told_apart_in_little_time(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    for index, angle in enumerate(np.linspace(0, 3, 60)):
        along = [float(np.cos(angle)), float(np.sin(angle)), 0, 0, 0, -1]
        write_dicom_slice(folder / f"{index:03}", VOLUME[0], ImageOrientationPatient=along)
    assert "files of 20 or more kinds" in refusal(folder).reason


def test_reports_in_the_folder_are_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "s")
    report = dicom_dataset(VOLUME[0], Rows=None, Columns=None, PixelData=None)
    save_dicom(report, folder / "report")
    found = read_image(folder)
    assert found.shape == VOLUME.shape
    (notice,) = found.notices
    assert (notice.code, "report was left out" in notice.text) == ("no_pixels", True)


# What is told apart.


def test_several_series_are_counted_with_names_of_each(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", name="a{:03}")
    write(folder, VOLUME[:4], name="b{:03}", SeriesInstanceUID=UID("1.2.3"))
    error = refusal(folder)
    assert (error.code, error.file) == ("several_series", "")
    assert error.reason == "There are 2 DICOM series in it: 9 files such as a000; 4 files such as b000."


def test_several_orientations_are_counted_with_names_of_each(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", name="a{:03}")
    write(folder, VOLUME[:4], name="b{:03}", ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    error = refusal(folder)
    assert error.code == "mixed_orientation"
    assert "9 files such as a000; 4 files such as b000" in error.reason


@pytest.mark.parametrize(
    ("tag", "values", "words"),
    [
        ("EchoTime", (5, 10), "echo time"),
        ("DiffusionBValue", (0.0, 800.0), "b-value"),
        ("TemporalPositionIdentifier", (1, 2), "time point"),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]), "image type"),
    ],
)
def test_volumes_at_the_same_positions_are_told_apart(tmp_path: Path, tag: str, values: Any, words: str) -> None:
    folder = write(tmp_path / "s", name="a{:03}", **{tag: values[0]})
    write(folder, name="b{:03}", **{tag: values[1]})
    error = refusal(folder)
    assert error.code == "several_volumes"
    assert f"2 volumes at the same positions, which differ in their {words}" in error.reason
    assert "9 files such as a000" in error.reason
    assert "9 files such as b000" in error.reason


def test_copies_without_a_difference_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "s")
    (folder / "copy of 003").write_bytes((folder / "003.dcm").read_bytes())
    error = refusal(folder)
    assert error.code == "duplicate_position"
    assert "003.dcm and copy of 003" in error.reason


def test_two_files_of_many_frames(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for name in "ab":
        write_dicom_multiframe(tmp_path / "s" / name, VOLUME)
    assert refusal(tmp_path / "s").reason == "The series has 2 files and a alone is a volume."


# Pixels and content.


def test_burned_in_text_is_said(tmp_path: Path) -> None:
    assert codes(write(tmp_path / "s", BurnedInAnnotation="YES")) == ["burned_in"]
    assert codes(write_dicom_slice(tmp_path / "a", WORDS, BurnedInAnnotation="YES")) == ["burned_in"]
    assert codes(write_dicom_slice(tmp_path / "b", WORDS, BurnedInAnnotation="NO")) == []


def bare(path: Path, array: Array, *, implicit: bool = False) -> Path:
    """A data set without preamble and meta information."""
    dataset = dicom_dataset(array, ImagePositionPatient=[0.0, 0.0, 2.0 * int(path.name[-1])])
    dataset.preamble = None
    if implicit:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.save_as(path, implicit_vr=implicit, little_endian=True)
    raw = path.read_bytes()
    path.write_bytes(raw[raw.index(b"\x08\x00\x16\x00\x1a\x00" if implicit else b"\x08\x00\x16\x00UI") :])
    return path


@pytest.mark.parametrize("implicit", [False, True])
def test_files_without_preamble_and_ending(tmp_path: Path, implicit: bool) -> None:
    (tmp_path / "s").mkdir()
    for index, array in enumerate(VOLUME):
        path = bare(tmp_path / "s" / f"IM{index}", array, implicit=implicit)
    assert is_bare_dicom(path.read_bytes()[:352])
    assert np.array_equal(read_image(tmp_path / "s").array[0], VOLUME[UPRIGHT])
    assert np.array_equal(read_image(path).array[0], VOLUME[-1])


def test_a_picture_among_many_slices_is_left_out_and_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "s")
    write_png(folder / "photo.dcm", IMAGE)
    (folder / "x.nii.gz").write_bytes(b"\x1f\x8b")
    for path in (folder, zipped(folder)):
        found = read_image(path)
        assert np.array_equal(found.array[0], VOLUME[UPRIGHT])
        (notice,) = found.notices
        assert (notice.code, notice.text) == ("not_dicom", "photo.dcm and x.nii.gz were left out (not DICOM).")


def test_other_files_among_few_slices_are_refused_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", VOLUME[:2])
    for name in "ab":
        write_png(folder / name, IMAGE)
    error = refusal(folder)
    assert (error.code, error.reason) == ("not_dicom", "a is not a DICOM file.")


def test_endings_by_content(tmp_path: Path) -> None:
    head = write_png(tmp_path / "a.png", IMAGE).read_bytes()[:352]
    assert kind_of(head) == "raster"
    assert (suffix_by_content("a.bin", head), suffix_by_content("a.dcm", head)) == (".png", ".dcm")
    assert (suffix_by_content("a.heic", b"ftypheic" * 40), suffix_by_content("a.tif", b"")) == (None, ".tif")
    assert not is_bare_dicom(bytes(352))
    assert not is_bare_dicom(b"\x08\x00" + b"\xff" * 350)


def deflated(path: Path, array: Array, *, extra: bytes = b"", **tags: Any) -> Path:
    dataset = dicom_dataset(array, **tags)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    save_dicom(dataset, path)
    if extra:
        whole = path.read_bytes()
        start = 144 + int.from_bytes(whole[140:144], "little")
        content = zlib.decompress(whole[start:], -15) + extra
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        path.write_bytes(whole[:start] + packer.compress(content) + packer.flush())
    return path


def test_deflated_files_are_read(tmp_path: Path) -> None:
    assert np.array_equal(read_image(deflated(tmp_path / "a.dcm", WORDS)).array[0], WORDS)
    large = np.random.default_rng(0).integers(0, 60000, (700, 900)).astype(np.uint16)
    assert np.array_equal(read_image(deflated(tmp_path / "b", large)).array[0], large)
    (tmp_path / "s").mkdir()
    for index, array in enumerate(VOLUME):
        deflated(tmp_path / "s" / f"{index}", array, ImagePositionPatient=[0.0, 0.0, 2.0 * index])
    assert np.array_equal(read_image(tmp_path / "s").array[0], VOLUME[UPRIGHT])


def test_a_deflated_file_expands_no_further_than_its_header_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A private element of 64 MiB behind the pixels.
    extra = b"\xe1\x7f\x10\x00OB\0\0" + (64 * 2**20).to_bytes(4, "little") + bytes(64 * 2**20)
    bomb = deflated(tmp_path / "a.dcm", WORDS, extra=extra)
    assert bomb.stat().st_size < 100_000
    read: list[int] = []
    inflate = zlib.decompressobj

    class Counted:
        def __init__(self, *arguments: Any) -> None:
            self._inflater = inflate(*arguments)

        def decompress(self, *arguments: Any) -> bytes:
            piece = self._inflater.decompress(*arguments)
            read.append(len(piece))
            return piece

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inflater, name)

    monkeypatch.setattr(zlib, "decompressobj", Counted)
    error = refusal(bomb)
    assert (error.code, "than its header says" in error.reason) == ("too_large", True)
    assert sum(read) < 20 * 2**20
    huge = deflated(tmp_path / "b.dcm", WORDS, Rows=40000, Columns=40000)
    assert code_of(huge) == "too_many_pixels"


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_deflated_file_that_is_cut_off(tmp_path: Path, share: float) -> None:
    path = deflated(tmp_path / "a.dcm", np.random.default_rng(0).integers(0, 60000, (70, 90)).astype(np.uint16))
    whole = path.read_bytes()
    path.write_bytes(whole[: 400 + int((len(whole) - 400) * share)])
    assert code_of(path) == "unreadable"
