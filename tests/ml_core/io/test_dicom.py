"""DICOM: values, colours, compression, and the order and geometry of series and frames."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import convert_color_space
from pydicom.sequence import Sequence
from pydicom.uid import UID, CTImageStorage, JPEGBaseline8Bit, RLELossless

from ml_core.dataset.checks import check_pair
from ml_core.io import ImageError, image, read_image, read_mask, series, write_label_map
from ml_core.io.containers import ArchiveLimits
from tests.ml_core.io.test_raster import IMAGE, LABELS, code_of
from tests.synthetic import (
    SERIES_UID,
    Array,
    dicom_dataset,
    draw_volume,
    save_dicom,
    write_dicom_multiframe,
    write_dicom_series,
    write_dicom_slice,
    write_jpg,
    write_nifti,
    write_png,
    write_tiff,
    zip_folder,
)

WORDS = IMAGE.astype(np.uint16) * 10
VOLUME, VOLUME_LABELS = draw_volume(np.random.default_rng(3), (6, 8, 10), classes=3)
UPRIGHT = np.s_[:, ::-1, ::-1]  # RAS of slices whose rows run to the left and columns to the back


def test_a_slice_has_its_units_geometry_and_patient(tmp_path: Path) -> None:
    path = write_dicom_slice(
        tmp_path / "a.dcm", WORDS, RescaleSlope=1, RescaleIntercept=-1000, ImagePositionPatient=[10.0, 20.0, 30.0]
    )
    found = read_image(path)
    assert found.array.dtype == np.int16
    assert np.array_equal(found.array[0], WORDS.astype(int) - 1000)
    assert (found.family, found.modality, found.patient) == ("dicom", "CT", "patient-7")
    assert found.spacing == (0.5, 0.75)
    assert found.affine is not None
    assert found.affine.tolist() == [[-0.75, 0, 0, -10], [0, -0.5, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1]]
    mask = read_mask(write_png(tmp_path / "m.png", LABELS))
    check_pair(found, mask)
    assert write_label_map(mask.values, found, tmp_path).name == "labels.png"


def test_mask_values_are_the_stored_ones(tmp_path: Path) -> None:
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024, "PhotometricInterpretation": "MONOCHROME1"}
    mask = read_mask(write_dicom_slice(tmp_path / "a.dcm", LABELS, **tags))
    assert np.array_equal(mask.values, LABELS)
    check_pair(read_image(write_dicom_slice(tmp_path / "b.dcm", WORDS)), mask)


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint16, 12), (np.uint8, 8), (np.int16, 16)])
def test_monochrome1_is_inverted_over_the_stored_range(tmp_path: Path, dtype: type, bits: int) -> None:
    stored: Array = IMAGE.astype(dtype)
    tags = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": bits, "HighBit": bits - 1}
    found = read_image(write_dicom_slice(tmp_path / "a.dcm", stored, **tags)).array[0].astype(int)
    assert np.array_equal(found, (-1 if dtype is np.int16 else 2**bits - 1) - IMAGE.astype(int))


def test_colour_is_rgb_also_from_ybr_and_palettes(tmp_path: Path) -> None:
    rgb = np.stack([IMAGE, 255 - IMAGE, LABELS * np.uint8(40)], axis=-1)
    assert np.array_equal(read_image(write_dicom_slice(tmp_path / "a.dcm", rgb)).array, rgb.transpose(2, 0, 1))
    ybr = convert_color_space(rgb, "RGB", "YBR_FULL")
    found = read_image(write_dicom_slice(tmp_path / "b.dcm", ybr, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(found.array.transpose(1, 2, 0).astype(int) - rgb).max() <= 2
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, ramp in (("Red", [0, 100, 200]), ("Green", [5, 6, 7]), ("Blue", [9, 8, 7])):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = (np.array(ramp, np.uint16) << 8).tobytes()
    found = read_image(write_dicom_slice(tmp_path / "c.dcm", LABELS, **tags))
    assert np.array_equal(found.array[:, LABELS == 2][:, 0], [200, 7, 7])
    assert np.array_equal(read_mask(tmp_path / "c.dcm").values, LABELS)


def test_rle_compression(tmp_path: Path) -> None:
    dataset = dicom_dataset(WORDS)
    dataset.compress(RLELossless, generate_instance_uid=False)
    assert np.array_equal(read_image(save_dicom(dataset, tmp_path / "a.dcm")).array[0], WORDS)


@pytest.mark.parametrize(
    "name", ["MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm", "MR_small_bigendian.dcm"]
)
def test_transfer_syntaxes_of_the_samples_that_come_with_pydicom(name: str) -> None:
    plain, other = (read_image(Path(str(get_testdata_file(n, download=False)))) for n in ("MR_small.dcm", name))
    assert np.array_equal(plain.array, other.array)


def jpeg_dicom(folder: Path, array: Array) -> Dataset:
    """JPEG baseline of `array` in a header that says IMAGE's size."""
    dataset = dicom_dataset(IMAGE)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([write_jpg(folder / "frame.jpg", array).read_bytes()])
    dataset["PixelData"].is_undefined_length = True
    dataset.LossyImageCompression = "01"
    return dataset


def test_jpeg_compression_and_a_stream_larger_than_its_header(tmp_path: Path) -> None:
    path = save_dicom(jpeg_dicom(tmp_path, IMAGE), tmp_path / "a.dcm")
    assert np.abs(read_image(path).array[0].astype(int) - IMAGE).mean() < 3
    assert code_of(path, mask=True) == "lossy_mask"
    bomb = save_dicom(jpeg_dicom(tmp_path, np.zeros((500, 500), np.uint8)), tmp_path / "b.dcm")
    with pytest.raises(ImageError, match="500 x 500 and the header says 30 x 40"):
        read_image(bomb)


def test_preamble_or_extension_is_enough(tmp_path: Path) -> None:
    path = write_dicom_slice(tmp_path / "1.2.840.5", WORDS)
    assert np.array_equal(read_image(path).array[0], WORDS)
    bare = dicom_dataset(WORDS)
    bare.preamble = None
    bare.save_as(tmp_path / "bare.dcm", implicit_vr=False, little_endian=True)
    raw = (tmp_path / "bare.dcm").read_bytes()
    start = raw.index(b"\x08\x00\x16\x00UI")  # the first element after the file's meta information
    (tmp_path / "bare.dcm").write_bytes(raw[start:])
    assert np.array_equal(read_image(tmp_path / "bare.dcm").array[0], WORDS)


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    assert code_of(write_dicom_slice(tmp_path / "a.dcm", WORDS, PixelData=None)) == "no_pixels"
    assert code_of(write_dicom_slice(tmp_path / "b.dcm", WORDS, Rows=None, PixelData=None)) == "no_pixels"
    assert code_of(write_dicom_slice(tmp_path / "c.dcm", WORDS, Modality="SEG"), mask=True) == "dicom_seg"
    assert code_of(write_dicom_slice(tmp_path / "d.dcm", WORDS, Rows=0)) == "empty_image"
    assert code_of(write_dicom_slice(tmp_path / "e.dcm", WORDS, PhotometricInterpretation="CMYK")) == (
        "unsupported_pixels"
    )
    assert code_of(write_dicom_slice(tmp_path / "g.dcm", WORDS, Rows=40000, Columns=40000)) == "too_many_pixels"
    whole = write_dicom_slice(tmp_path / "h.dcm", WORDS).read_bytes()
    (tmp_path / "h.dcm").write_bytes(whole[:-500])
    assert code_of(tmp_path / "h.dcm") == "unreadable"


def test_series_is_sorted_in_space_as_folder_and_as_zip(tmp_path: Path) -> None:
    folder = write_dicom_series(tmp_path / "series", VOLUME)
    (folder / ".DS_Store").write_bytes(b"junk")
    (folder / "DICOMDIR").write_bytes(b"junk")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "._IM1").write_bytes(b"junk")
    for path in (folder, zip_folder(folder, tmp_path / "series.zip")):
        found = read_image(path)
        assert np.array_equal(found.array[0], VOLUME[UPRIGHT])
        assert found.spacing == (2.0, 0.5, 0.75)
        labels = VOLUME_LABELS[UPRIGHT]
        mask = read_mask(write_label_map(labels, found, tmp_path), like=found)
        check_pair(found, mask)
        assert np.array_equal(mask.values, labels)


ALONG = {"axial": [1, 0, 0, 0, 1, 0], "axial, feet last": [-1, 0, 0, 0, 1, 0], "sagittal": [0, 1, 0, 0, 0, -1]}


@pytest.mark.parametrize("orientation", ALONG)
@pytest.mark.parametrize("packed", [False, True])
def test_each_slice_of_the_array_names_the_instance_it_came_from(
    tmp_path: Path, orientation: str, packed: bool
) -> None:
    folder, along = tmp_path / "series", ALONG[orientation]
    folder.mkdir()
    normal = np.cross(along[:3], along[3:])
    stored: dict[str, Array] = {}
    for place in np.random.default_rng(0).permutation(len(VOLUME)):  # the numbers and names say nothing of the place
        number, position = len(stored) + 1, (normal * 2.0 * place).tolist()
        tags = {"InstanceNumber": number, "ImageOrientationPatient": along, "ImagePositionPatient": position}
        dataset = dicom_dataset(VOLUME[place], FrameOfReferenceUID=UID("1.2.3.4"), **tags)
        stored[str(dataset.SOPInstanceUID)] = VOLUME[place]
        save_dicom(dataset, folder / f"{number}.dcm")
    found = read_image(zip_folder(folder, tmp_path / "series.zip") if packed else folder)
    source = found.grid.source
    assert source is not None
    assert sorted(source.instances) == sorted(stored)
    assert source.axis == (2 if orientation == "sagittal" else 0)
    for number, instance in enumerate(source.instances):
        pixels = found.array[0].take(number, source.axis)
        assert np.array_equal(np.sort(pixels, axis=None), np.sort(stored[instance], axis=None))
    assert source.frames == (1,) * len(VOLUME)
    assert (source.sop_class, source.frame_of_reference) == (str(CTImageStorage), "1.2.3.4")
    assert (source.study, source.series) == (f"{SERIES_UID}.0", SERIES_UID)


def test_a_picture_names_its_instance_and_silent_headers_name_nothing(tmp_path: Path) -> None:
    source = read_image(write_dicom_slice(tmp_path / "a.dcm", WORDS)).grid.source
    assert source is not None
    assert (source.instances, source.frames, source.frame_of_reference) == ((f"{SERIES_UID}.1",), (1,), "")
    source = read_image(write_dicom_slice(tmp_path / "b.dcm", WORDS, StudyInstanceUID=None)).grid.source
    assert source is not None
    assert source.study == ""


def test_masks_of_a_series_in_other_formats(tmp_path: Path) -> None:
    found = read_image(write_dicom_series(tmp_path / "series", VOLUME))
    affine = np.diag([-0.75, -0.5, 2.0, 1.0])
    masks = [
        read_mask(write_dicom_series(tmp_path / "mask", VOLUME_LABELS)),
        read_mask(write_nifti(tmp_path / "a.nii.gz", VOLUME_LABELS.transpose(), affine)),
        read_mask(write_tiff(tmp_path / "a.tif", list(VOLUME_LABELS)), like=found),
    ]
    for mask in masks:
        check_pair(found, mask)
        assert np.array_equal(mask.values, VOLUME_LABELS[UPRIGHT])
    with pytest.raises(ImageError, match="the mask has none"):
        check_pair(found, read_mask(tmp_path / "a.tif"))


def test_nifti_mask_of_a_slice_is_flipped_onto_it(tmp_path: Path) -> None:
    found = read_image(write_dicom_slice(tmp_path / "a.dcm", WORDS))
    path = write_nifti(tmp_path / "m.nii.gz", LABELS.transpose()[:, :, None], np.diag([-0.75, -0.5, 2.0, 1.0]))
    mask = read_mask(path, like=found)
    check_pair(found, mask)
    assert np.array_equal(mask.values, LABELS)


def test_slices_may_have_scales_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    for index, (slope, position) in enumerate([(1, 0.0), (0.5, 2.0), (40, 4.0)]):
        tags = {"RescaleSlope": slope, "RescaleIntercept": 0, "ImagePositionPatient": [0.0, 0.0, position]}
        write_dicom_slice(folder / f"{index}.dcm", WORDS, **tags)
    found = read_image(folder).array[0]
    assert found.dtype == np.float32
    expected = np.stack([WORDS * 1.0, WORDS * 0.5, WORDS * 40.0])
    np.testing.assert_array_equal(found, expected[UPRIGHT].astype(np.float32))


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ({"SeriesInstanceUID": "1.2.3"}, "several_series"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "mixed_orientation"),
        ({"PixelSpacing": [0.5, 0.8]}, "mixed_spacing"),
        ({"ImagePositionPatient": [0.0, 0.0, 2.0]}, "duplicate_position"),
        ({"ImagePositionPatient": [0.0, 0.0, 13.0]}, "uneven_gaps"),
        ({"ImagePositionPatient": None}, "no_position"),
        ({"Rows": 4, "Columns": 20}, "mixed_shape"),
        ({"PixelData": None}, "no_pixels"),
    ],
)
def test_a_slice_that_does_not_fit_is_named(tmp_path: Path, tags: dict[str, Any], code: str) -> None:
    folder = write_dicom_series(tmp_path / "series", VOLUME)
    (odd,) = folder.glob("*_5")
    write_dicom_slice(odd, VOLUME[5], **{"ImagePositionPatient": [0.0, 0.0, 10.0], "InstanceNumber": 6, **tags})
    with pytest.raises(ImageError) as caught:
        read_image(folder)
    assert caught.value.code == code
    assert odd.name in caught.value.reason
    assert caught.value.cure


def test_gantry_tilt_becomes_a_shear(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    for index, array in enumerate(VOLUME):
        write_dicom_slice(folder / f"{index}.dcm", array, ImagePositionPatient=[0.0, 0.25 * index, 2.0 * index])
    found = read_image(folder)
    assert found.affine is not None
    assert np.allclose(found.affine[:3, 2], [0, -0.25, 2.0])
    check_pair(found, read_mask(write_label_map(VOLUME_LABELS, found, tmp_path)))


def test_without_positions_the_instance_number_sorts(tmp_path: Path) -> None:
    bare: dict[str, Any] = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    found = read_image(write_dicom_series(tmp_path / "series", VOLUME, **bare))
    assert np.array_equal(found.array[0], VOLUME[UPRIGHT])  # taken as lying straight
    no_spacing: dict[str, Any] = {**bare, "PixelSpacing": None}
    stored = read_image(write_dicom_series(tmp_path / "other", VOLUME, **no_spacing))
    assert (stored.affine, stored.spacing) == (None, None)
    assert np.array_equal(stored.array[0], VOLUME)
    same: dict[str, Any] = {**bare, "InstanceNumber": 1}
    assert code_of(write_dicom_series(tmp_path / "same", VOLUME, **same)) == "no_position"


def test_classic_multi_frame(tmp_path: Path) -> None:
    found = read_image(write_dicom_multiframe(tmp_path / "a.dcm", VOLUME, gap=3.0))
    assert np.array_equal(found.array[0], VOLUME[UPRIGHT])
    assert found.spacing == (3.0, 0.5, 0.75)
    rgb = np.stack([VOLUME, VOLUME + 1, VOLUME + 2], axis=-1).astype(np.uint8)
    colour = read_image(write_dicom_multiframe(tmp_path / "b.dcm", rgb))
    assert np.array_equal(colour.array, np.moveaxis(rgb, -1, 0)[:, *UPRIGHT])


def test_enhanced_multi_frame_has_its_geometry_and_scale_in_functional_groups(tmp_path: Path) -> None:
    def group(**values: Any) -> Sequence:
        item = Dataset()
        for name, value in values.items():
            setattr(item, name, value)
        return Sequence([item])

    shared, frames = Dataset(), []
    shared.PixelMeasuresSequence = group(PixelSpacing=[0.5, 0.75], SpacingBetweenSlices=2.5)
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    for index in range(len(VOLUME)):
        frame = Dataset()
        frame.PlanePositionSequence = group(ImagePositionPatient=[0.0, 0.0, -2.5 * index])  # top down
        frame.PixelValueTransformationSequence = group(RescaleSlope=1 + index % 2, RescaleIntercept=0)
        frames.append(frame)
    path = write_dicom_slice(
        tmp_path / "a.dcm",
        VOLUME,
        PixelSpacing=None,
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(frames),
    )
    found = read_image(path)
    scale = np.array([1, 2, 1, 2, 1, 2])[:, None, None]
    assert np.array_equal(found.array[0], (VOLUME * scale)[::-1][UPRIGHT])
    assert found.spacing == (2.5, 0.5, 0.75)
    source = found.grid.source
    assert source is not None
    assert (source.instances, source.frames) == ((f"{SERIES_UID}.1",) * 6, (6, 5, 4, 3, 2, 1))


def test_archives_of_a_series_are_guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_dicom_series(tmp_path / "series", VOLUME)
    path = zip_folder(folder, tmp_path / "a.zip")
    for name, content, code in (
        ("inner.zip", b"PK\x03\x04", "nested_archive"),
        ("../slice.dcm", b"x", "unsafe_path"),
        ("zeros.dcm", bytes(300 * 2**20), "ratio"),
        ("readme.txt", b"hello", None),
    ):
        with zipfile.ZipFile(zip_folder(folder, path), "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)
        if code is None:
            assert read_image(path).shape == VOLUME.shape
        else:
            assert code_of(path) == code
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", b"hello")
    assert code_of(path) == "no_dicom"
    locked = bytearray(zip_folder(folder, path).read_bytes())
    locked[locked.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(locked)
    assert code_of(path) == "encrypted"
    for limits in (ArchiveLimits(max_entries=5), ArchiveLimits(max_expanded_bytes=3000)):
        with monkeypatch.context() as patch:
            patch.setattr(series, "LIMITS", limits)
            assert code_of(zip_folder(folder, path)) == "archive_too_large"
            assert code_of(folder) == "archive_too_large"
    monkeypatch.setattr(image, "LIMITS", image.Limits(voxels=479))
    assert code_of(folder) == "too_many_pixels"
