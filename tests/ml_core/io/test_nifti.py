"""NIfTI: every orientation there and back, pixel scaling, and the pairing of geometry."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from ml_core.dataset.checks import check_pair
from ml_core.io import ImageError, display_slice, read_image, read_mask, write_label_map
from tests.ml_core.io.test_raster import code_of
from tests.synthetic import draw_volume, write_nifti, write_png, write_tiff

VOLUME, LABELS = draw_volume(np.random.default_rng(2), (4, 5, 6), classes=3)
ALL_48 = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


def stored_as(
    canonical: Any, spacing: tuple[float, float, float], order: tuple[int, ...], signs: tuple[int, ...]
) -> tuple[Any, Any]:
    """A (X, Y, Z) RAS+ array with its axes permuted and flipped, and the affine that says so."""
    array, affine = canonical, np.diag([*spacing, 1.0])
    affine[:3, 3] = (-10, 20, 30)
    for axis, sign in enumerate(signs):
        if sign < 0:
            array = np.flip(array, axis)
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
    return np.ascontiguousarray(array.transpose(order)), affine[:, [*order, 3]]


@pytest.mark.parametrize(("order", "signs"), ALL_48)
def test_every_orientation_reads_the_same_and_writes_back_on_its_own_grid(
    tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    spacing = (0.5, 0.75, 2.0)
    array, affine = stored_as(VOLUME.transpose(), spacing, order, signs)
    image = read_image(write_nifti(tmp_path / "a.nii.gz", array, affine))
    assert np.array_equal(image.array[0], VOLUME)
    assert image.spacing == pytest.approx(spacing[::-1])
    assert image.affine is not None
    assert image.affine.tolist() == [[0.5, 0, 0, -10], [0, 0.75, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1]]

    path = write_label_map(LABELS, image, tmp_path)
    written: Any = nib.load(path)
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "a.nii.gz").affine)  # type: ignore[attr-defined]  # nibabel types the image loosely
    np.testing.assert_array_equal(np.asarray(written.dataobj), stored_as(LABELS.transpose(), spacing, order, signs)[0])
    mask = read_mask(path)
    assert np.array_equal(mask.values, LABELS)
    check_pair(image, mask)


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 1, 1), (4, 5, 6, 1)])
def test_trailing_single_dimensions_are_dropped_and_come_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    image = read_image(write_nifti(tmp_path / "a.nii", array))
    assert image.dimensions == (3 if shape[0] == 4 else 2)
    assert np.array_equal(image.array[0], np.squeeze(array).transpose())
    written: Any = nib.load(write_label_map(np.asarray(image.array[0]), image, tmp_path))
    assert written.shape == shape
    assert np.array_equal(np.asarray(written.dataobj), array)


@pytest.mark.parametrize(("order", "signs"), ALL_48[::5])
def test_single_slices_of_any_orientation(tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    kept = order[:2]
    canonical = VOLUME.transpose().take([1], axis=order[2])
    array, affine = stored_as(canonical, (0.5, 0.75, 2.0), order, signs)
    image = read_image(write_nifti(tmp_path / "a.nii.gz", array, affine))
    assert np.array_equal(image.array[0], np.squeeze(canonical.transpose(), 2 - order[2]))
    assert image.spacing == pytest.approx([(0.5, 0.75, 2.0)[axis] for axis in sorted(kept, reverse=True)])
    labels = (np.asarray(image.array[0]) > 200).astype(np.uint8)
    path = write_label_map(labels, image, tmp_path)
    written: Any = nib.load(path)
    assert np.array_equal(np.asarray(written.dataobj), array > 200)
    check_pair(image, read_mask(path))
    assert np.array_equal(read_mask(path).values, labels)


def test_scaling_is_exact_in_integers_where_it_can_be(tmp_path: Path) -> None:
    stored = VOLUME.transpose()
    whole = read_image(write_nifti(tmp_path / "a.nii", stored, slope=2.0, intercept=-1024.0))
    assert whole.array.dtype == np.int16
    assert np.array_equal(whole.array[0], VOLUME * 2 - 1024)
    half = read_image(write_nifti(tmp_path / "b.nii", stored, slope=0.5))
    assert half.array.dtype == np.float32
    np.testing.assert_allclose(half.array[0], VOLUME * 0.5)


@pytest.mark.parametrize(
    ("stored", "read"),
    [("int8", "int16"), ("uint8", "uint8"), (">i2", "int16"), ("uint32", "int32"), ("float64", "float32")],
)
def test_number_types(tmp_path: Path, stored: str, read: str) -> None:
    array = LABELS.transpose().astype(stored)
    found = read_image(write_nifti(tmp_path / "a.nii.gz", array))
    assert found.array.dtype == np.dtype(read)
    assert np.array_equal(found.array[0], LABELS)


def test_masks_of_floats_and_negatives(tmp_path: Path) -> None:
    negative = read_mask(write_nifti(tmp_path / "a.nii.gz", LABELS.transpose().astype(np.float32) - 1))
    assert np.array_equal(negative.values, LABELS.astype(int) - 1)
    smooth = write_nifti(tmp_path / "b.nii.gz", LABELS.transpose().astype(np.float32) / 2)
    assert code_of(smooth, mask=True) == "not_integer"
    # How many values make sense is for the dataset's check to say: they may number objects.
    many = write_nifti(tmp_path / "c.nii.gz", np.arange(300, dtype=np.int16).reshape(10, 10, 3))
    assert len(np.unique(read_mask(many).values)) == 300


def test_what_is_no_image_is_refused_with_its_cure(tmp_path: Path) -> None:
    four = write_nifti(tmp_path / "a.nii.gz", np.zeros((4, 5, 6, 2), np.int16))
    with pytest.raises(ImageError, match=r"4 dimensions \(4 x 5 x 6 x 2\).* Split it"):
        read_image(four)
    colour = np.zeros((4, 5, 6), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    assert code_of(write_nifti(tmp_path / "b.nii.gz", colour)) == "rgb_nifti"
    assert code_of(write_nifti(tmp_path / "c.nii.gz", np.zeros((4, 5, 6), np.complex64))) == "unsupported_pixels"
    assert code_of(write_nifti(tmp_path / "d.nii.gz", np.full((4, 5, 6), np.inf, np.float32))) == "not_finite"
    nib.save(nib.Nifti1Pair(np.zeros((4, 5, 6), np.int16), np.eye(4)), tmp_path / "e.hdr")
    assert code_of(tmp_path / "e.hdr") == "unsupported_format"
    assert code_of(tmp_path / "e.img") == "unsupported_format"
    flat = bytearray(write_nifti(tmp_path / "f.nii", LABELS.transpose()).read_bytes())
    flat[280:328] = bytes(48)  # an sform of zeros
    (tmp_path / "f.nii").write_bytes(flat)
    assert code_of(tmp_path / "f.nii") == "bad_geometry"


def test_packed_and_plain_are_told_by_content(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", VOLUME.transpose()).rename(tmp_path / "a.nii")
    assert np.array_equal(read_image(tmp_path / "a.nii").array[0], VOLUME)


def test_masks_must_lie_where_their_image_lies(tmp_path: Path) -> None:
    image = read_image(write_nifti(tmp_path / "a.nii.gz", VOLUME.transpose()))
    mask = read_mask(write_nifti(tmp_path / "b.nii.gz", LABELS.transpose()))
    assert mask.affine is not None
    noise = np.full((4, 4), 5e-4)
    check_pair(image, replace(mask, affine=mask.affine + noise, spacing=(2.0, 1.0005, 1.0)))
    moved, turned = mask.affine.copy(), mask.affine.copy()
    moved[0, 3] += 0.01
    turned[0, 0] *= -1
    for wrong, code, text in (
        (replace(mask, values=mask.values[1:]), "shape_mismatch", "4 x 5 x 6 and its mask is 3 x 5 x 6"),
        (replace(mask, spacing=(2.5, 1.0, 1.0)), "spacing_mismatch", "2 x 1 x 1 mm and its mask of 2.5 x 1 x 1"),
        (replace(mask, affine=moved), "geometry_mismatch", "starts at"),
        (replace(mask, affine=turned), "geometry_mismatch", "axes point"),
        (replace(mask, affine=None), "no_geometry", "the mask has none"),
    ):
        with pytest.raises(ImageError, match=text) as caught:
            check_pair(image, wrong)
        assert caught.value.code == code


def test_masks_of_another_format_are_turned_to_the_image(tmp_path: Path) -> None:
    flipped = np.diag([-1.0, -1.0, 2.0, 1.0])  # how ITK saves what it drew on a picture without geometry
    picture = read_image(write_png(tmp_path / "a.png", VOLUME[0].astype(np.uint16)))
    mask = read_mask(write_nifti(tmp_path / "b.nii.gz", LABELS[0].transpose(), flipped), like=picture)
    check_pair(picture, mask)
    assert np.array_equal(mask.values, LABELS[0])
    with pytest.raises(ImageError) as caught:
        check_pair(picture, read_mask(tmp_path / "b.nii.gz"))
    assert caught.value.code == "no_geometry"

    volume = read_image(write_nifti(tmp_path / "c.nii.gz", VOLUME.transpose(), flipped))
    stack = read_mask(write_tiff(tmp_path / "d.tif", list(LABELS)), like=volume)
    check_pair(volume, stack)
    assert np.array_equal(stack.values, LABELS[:, ::-1, ::-1])


def test_display_has_one_window_for_the_volume_and_refuses_a_slice_too_far(tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(0, 1000, 10), 64).reshape(10, 8, 8).astype(np.float32)
    image = read_image(write_nifti(tmp_path / "a.nii.gz", ramp.transpose()))
    means = [display_slice(image, index).mean() for index in range(10)]
    assert means == sorted(means)
    assert (means[0], means[9]) == (0, 255)
    assert np.array_equal(display_slice(image), display_slice(image, 5))
    with pytest.raises(ImageError, match="no slice 10"):
        display_slice(image, 10)


def two_transforms(path: Path, array: Any, sform: Any, qform: Any, codes: tuple[int, int] = (1, 1)) -> Path:
    picture: Any = nib.Nifti1Image(array, None)
    picture.set_sform(sform, codes[0])
    picture.set_qform(qform, codes[1])
    picture.header["xyzt_units"] = 2
    nib.save(picture, path)
    return path


TURN = np.eye(4)
TURN[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
SFORM = np.diag([1.0, 1.0, 2.0, 1.0])
SFORM[:3, 3] = (-10, -12, -14)
QFORM = TURN @ np.diag([-1.0, -1.0, 2.0, 1.0])  # its axes point elsewhere, too
QFORM[:3, 3] = (4.4, 3.8, 1)


@pytest.mark.parametrize("codes", [(1, 1), (4, 2), (0, 1), (2, 0), (0, 0)])
@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 1), (6, 5)])
def test_a_label_map_has_both_transforms_and_the_codes_of_its_image(
    tmp_path: Path, codes: tuple[int, int], shape: tuple[int, ...]
) -> None:
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    path = two_transforms(tmp_path / "a.nii.gz", array, SFORM, QFORM, codes)
    image = read_image(path)
    written: Any = nib.load(write_label_map((image.array[0] > 9).astype(np.uint8), image, tmp_path))
    given: Any = nib.load(path)
    assert np.array_equal(np.asarray(written.dataobj), array > 9)
    for field in ("sform_code", "qform_code", "srow_x", "srow_y", "qoffset_x", "quatern_d", "pixdim", "xyzt_units"):
        assert np.array_equal(written.header[field], given.header[field]), field
    assert np.array_equal(written.affine, given.affine)
    mask = read_mask(tmp_path / "labels.nii.gz", like=image)
    check_pair(image, mask)
    assert np.array_equal(mask.values, image.array[0] > 9)


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 1)])
def test_a_mask_may_lie_on_either_transform_of_its_image(tmp_path: Path, shape: tuple[int, ...]) -> None:
    labels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    image = read_image(two_transforms(tmp_path / "a.nii.gz", labels.astype(np.int16), SFORM, QFORM))
    for number, transform in enumerate((SFORM, QFORM)):
        mask = read_mask(write_nifti(tmp_path / f"{number}.nii.gz", labels, transform), like=image)
        check_pair(image, mask)
        assert np.array_equal(mask.values, image.array[0])
        # The same mask, stored with its axes turned to RAS by another program.
        canonical: Any = nib.as_closest_canonical(nib.load(tmp_path / f"{number}.nii.gz"))
        nib.save(canonical, tmp_path / "turned.nii.gz")
        mask = read_mask(tmp_path / "turned.nii.gz", like=image)
        check_pair(image, mask)
        assert np.array_equal(mask.values, image.array[0])
    elsewhere = SFORM.copy()
    elsewhere[0, 3] += 1
    for path, like in (
        (write_nifti(tmp_path / "b.nii.gz", labels, elsewhere), image),
        # The mask's qform lies on the image, and its sform, which counts, does not.
        (two_transforms(tmp_path / "c.nii.gz", labels, elsewhere, QFORM), image),
        (two_transforms(tmp_path / "d.nii.gz", labels, elsewhere, SFORM), read_image(tmp_path / "0.nii.gz")),
    ):
        with pytest.raises(ImageError, match=r"starts at .* two transforms \(sform and qform\) that differ"):
            check_pair(like, read_mask(path, like=like))


def test_transforms_that_differ_by_rounding_are_one(tmp_path: Path) -> None:
    image = read_image(two_transforms(tmp_path / "a.nii.gz", LABELS, TURN @ SFORM, TURN @ SFORM))
    assert image.grid.second is None


@pytest.mark.parametrize(("code", "unit"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001), (3 + 8, 0.001), (5, 1.0)])
def test_units_become_mm_and_go_back(tmp_path: Path, code: int, unit: float) -> None:
    for name, array in (("image", VOLUME), ("mask", LABELS)):
        picture: Any = nib.Nifti1Image(array.transpose(), SFORM)
        picture.header["xyzt_units"] = code
        nib.save(picture, tmp_path / f"{name}.nii.gz")
    image, mask = read_image(tmp_path / "image.nii.gz"), read_mask(tmp_path / "mask.nii.gz")
    assert image.affine is not None
    assert image.spacing == pytest.approx([2 * unit, unit, unit])
    np.testing.assert_allclose(image.affine[:3], SFORM[:3] * unit)
    check_pair(image, mask)
    written: Any = nib.load(write_label_map(LABELS, image, tmp_path))
    assert int(written.header["xyzt_units"]) == code
    np.testing.assert_array_equal(written.affine, SFORM)
    # The same place in other units is the same grid; the same numbers in other units are not.
    in_mm = write_nifti(tmp_path / "mm.nii.gz", LABELS.transpose(), np.diag([unit, unit, unit, 1.0]) @ SFORM)
    check_pair(image, read_mask(in_mm, like=image))
    if unit != 1:
        with pytest.raises(ImageError, match="spacing"):
            check_pair(image, read_mask(write_nifti(tmp_path / "no.nii.gz", LABELS.transpose(), SFORM), like=image))


@pytest.mark.parametrize("scale", [8e-6, 1e-3, 1.0, 500.0])
def test_grids_are_compared_in_voxels_whatever_their_size(tmp_path: Path, scale: float) -> None:
    def placed(shift: float, stretch: float = 1.0) -> Any:
        affine = SFORM * scale
        affine[:3, :3] *= stretch
        affine[:3, 3] += shift * scale
        affine[3, 3] = 1
        return affine

    image = read_image(write_nifti(tmp_path / "a.nii.gz", VOLUME.transpose(), placed(0)))
    assert image.spacing == pytest.approx([2 * scale, scale, scale])
    for number, (shift, stretch, text) in enumerate(
        ((0.001, 1.0, ""), (0.0, 1.0005, ""), (0.02, 1.0, "starts at"), (0.0, 1.01, "spacing"), (1.0, 1.0, "starts at"))
    ):
        path = write_nifti(tmp_path / f"{number}.nii.gz", LABELS.transpose(), placed(shift, stretch))
        mask = read_mask(path, like=image)
        if not text:
            check_pair(image, mask)
            continue
        with pytest.raises(ImageError, match=text):
            check_pair(image, mask)


def test_a_place_in_double_precision_stays_so(tmp_path: Path) -> None:
    affine = SFORM.copy()
    affine[0, 3] = 12345.678901234
    nib.save(nib.Nifti2Image(VOLUME.transpose(), affine), tmp_path / "a.nii.gz")
    written: Any = nib.load(write_label_map(LABELS, read_image(tmp_path / "a.nii.gz"), tmp_path))
    assert written.affine[0, 3] == 12345.678901234


def test_names_in_a_header_do_not_get_into_a_label_map(tmp_path: Path) -> None:
    picture: Any = nib.Nifti1Image(VOLUME.transpose(), SFORM)
    picture.header["descrip"], picture.header["db_name"] = b"Doe, Jane", b"Doe"
    nib.save(picture, tmp_path / "a.nii")
    path = write_label_map(LABELS, read_image(tmp_path / "a.nii"), tmp_path)
    assert b"Doe" not in nib.load(path).header.binaryblock  # type: ignore[attr-defined]  # nibabel types the image loosely
