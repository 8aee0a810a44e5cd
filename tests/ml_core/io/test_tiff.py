"""TIFF of every kind: the values, channels and slices that the file holds come back, or a sentence says why not."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tifffile

from ml_core.dataset.checks import check_pair
from ml_core.io import ImageError, image, read_image, read_mask, tiff, tiff_layout
from tests.ml_core.io.test_raster import IMAGE, LABELS, RGB, code_of
from tests.synthetic import COLOURS, Array

RNG = np.random.default_rng(6)
STACK = np.stack([IMAGE + shift for shift in range(4)]).astype(np.uint8)
CHANNELS = np.stack([IMAGE, 255 - IMAGE, IMAGE // 2, LABELS * 50, IMAGE // 3]).astype(np.uint8)


def write(path: Path, array: Array, **options: Any) -> Path:
    tifffile.imwrite(path, array, **options)
    return path


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize(
    ("stored", "read"),
    [
        *(("bool", "uint8"), ("uint8", "uint8"), ("uint16", "uint16"), ("uint32", "int32"), ("uint64", "int32")),
        *(("int8", "int16"), ("int16", "int16"), ("int32", "int32"), ("int64", "int32")),
        *(("float16", "float32"), ("float32", "float32"), ("float64", "float32")),
    ],
)
def test_values_of_every_number_type_come_back(tmp_path: Path, stored: str, read: str, byteorder: Any) -> None:
    values = IMAGE.astype(np.int16) - (100 if np.dtype(stored).kind in "if" else 0)
    array = (values > 90) if stored == "bool" else (np.clip(values, -128, 127) if stored == "int8" else values)
    expected = array * 255 if stored == "bool" else array
    predictor = stored not in ("bool", "int64", "uint64")
    for options in ({}, {"compression": "zlib", "predictor": predictor}, {"bigtiff": True, "tile": (16, 16)}):
        path = write(tmp_path / "a.tif", array.astype(stored), byteorder=byteorder, **options)
        found = read_image(path)
        assert found.array.dtype == np.dtype(read)
        assert np.array_equal(found.array, expected[None])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colours_of_both_planar_configurations_keep_their_bits(tmp_path: Path, dtype: type, planar: Any) -> None:
    colours: Array = RGB.astype(dtype) * (200 if dtype == np.uint16 else 1)
    stored = colours if planar == "contig" else colours.transpose(2, 0, 1)
    for options in ({}, {"compression": "lzw"}, {"tile": (16, 32)}):
        path = write(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar, **options)
        found = read_image(path)
        assert found.array.dtype == dtype
        assert np.array_equal(found.array, colours.transpose(2, 0, 1))


@pytest.mark.parametrize("compression", ["lzw", "packbits", "zlib", "lzma", "zstd", "jpeg2000"])
def test_compressions(tmp_path: Path, compression: str) -> None:
    wide = IMAGE.astype(np.uint16) * 200
    assert np.array_equal(read_image(write(tmp_path / "a.tif", wide, compression=compression)).array[0], wide)


def test_jpeg_inside_tiff_is_lossy_and_in_colours(tmp_path: Path) -> None:
    smooth = np.kron(RGB[:8, :8], np.ones((16, 16, 1), np.uint8))
    path = write(tmp_path / "a.tif", smooth, photometric="rgb", compression="jpeg", compressionargs={"level": 95})
    assert np.abs(read_image(path).array.astype(int) - smooth.transpose(2, 0, 1)).mean() < 12
    truth = np.kron(LABELS > 0, np.ones((8, 8), bool))
    black_and_white = write(tmp_path / "b.tif", np.where(truth, 255, 0).astype(np.uint8), compression="jpeg")
    mask = read_mask(black_and_white)
    assert mask.lossy
    assert set(np.unique(mask.values)) == {0, 255}


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_other_colour_spaces_become_rgb(tmp_path: Path, mode: str) -> None:
    other = PIL.Image.fromarray(RGB).convert(mode)
    other.save(tmp_path / "a.tif", compression="tiff_lzw")
    expected = np.asarray(other.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(read_image(tmp_path / "a.tif").array, expected)


@pytest.mark.parametrize("compression", ["group3", "group4", None])
def test_one_bit_is_black_and_white_and_0_1_as_mask(tmp_path: Path, compression: str | None) -> None:
    PIL.Image.fromarray(LABELS > 0).save(tmp_path / "a.tif", compression=compression)
    assert np.array_equal(read_image(tmp_path / "a.tif").array[0], np.where(LABELS > 0, 255, 0))
    assert np.array_equal(read_mask(tmp_path / "a.tif").values, LABELS > 0)


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_are_spread_for_images_and_stored_values_for_masks(tmp_path: Path, bits: int) -> None:
    path = write(tmp_path / "a.tif", LABELS, bitspersample=bits)
    assert np.array_equal(read_mask(path).values, LABELS)
    assert np.array_equal(read_image(path).array[0], LABELS * (255 // (2**bits - 1)))


def test_white_as_zero_is_turned_except_in_files_of_imagej(tmp_path: Path) -> None:
    for array in (IMAGE, IMAGE.astype(np.uint16) * 200):
        most = np.iinfo(array.dtype).max
        path = write(tmp_path / "a.tif", array, photometric="miniswhite", software="scanner")
        assert np.array_equal(read_image(path).array[0], most - array)
    inverting = write(
        tmp_path / "b.tif",
        LABELS,
        photometric="miniswhite",
        description="ImageJ=1.54f\nmin=0",
        metadata=None,
        software="x",
    )
    assert np.array_equal(read_mask(inverting).values, LABELS)
    # tifffile and scikit-image write booleans so.
    booleans = write(tmp_path / "c.tif", LABELS > 0)
    assert tifffile.TiffFile(booleans).pages.first.photometric == 0
    assert np.array_equal(read_mask(booleans).values, LABELS > 0)


def test_palettes_are_colours_of_images_and_names_of_a_mask_s_values(tmp_path: Path) -> None:
    table = np.zeros((3, 256), np.uint16)
    table[:, : len(COLOURS)] = np.array(COLOURS, np.uint16).T
    for scale in (257, 1):  # some programs write 8-bit numbers
        path = write(tmp_path / "a.tif", LABELS, colormap=table * scale, photometric="palette")
        assert np.array_equal(read_image(path).array, np.array(COLOURS)[LABELS].transpose(2, 0, 1))
        mask = read_mask(path)
        assert np.array_equal(mask.values, LABELS)
        assert mask.palette == {0: "#000000", 1: "#c81e1e", 2: "#1ec81e"}


TURNED: dict[int, Array] = {
    **{1: IMAGE, 2: IMAGE[:, ::-1], 3: IMAGE[::-1, ::-1], 4: IMAGE[::-1]},
    **{5: IMAGE.T, 6: np.rot90(IMAGE, -1), 7: IMAGE.T[::-1, ::-1], 8: np.rot90(IMAGE)},
}


@pytest.mark.parametrize("orientation", TURNED)
def test_the_orientation_tag_turns_images_and_masks(tmp_path: Path, orientation: int) -> None:
    options = {"extratags": [(274, 3, 1, orientation, True)]}
    found = read_image(write(tmp_path / "a.tif", IMAGE, **options))
    assert np.array_equal(found.array[0], TURNED[orientation])
    mask = read_mask(write(tmp_path / "b.tif", (IMAGE > 90).astype(np.uint8), **options))
    assert np.array_equal(mask.values, TURNED[orientation] > 90)
    check_pair(found, mask)


@pytest.mark.parametrize("count", [2, 4, 5])
def test_samples_of_a_pixel_are_channels(tmp_path: Path, count: int) -> None:
    channels = CHANNELS[:count]
    for number, path in enumerate(
        (
            write(tmp_path / "a.tif", channels.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig"),
            write(tmp_path / "b.tif", channels, photometric="minisblack", planarconfig="separate"),
            write(tmp_path / "c.tif", channels, imagej=True, metadata={"axes": "CYX"}),
            write(tmp_path / "d.ome.tif", channels, photometric="minisblack", metadata={"axes": "CYX"}),
            write(tmp_path / "e.tif", channels, photometric="minisblack", metadata={"axes": "CYX"}),
        )
    ):
        found = read_image(path)
        assert (found.dimensions, found.channels) == (2, count), number
        assert np.array_equal(found.array, channels), number
        with pytest.raises(ImageError, match=f"has {count} channels") as caught:
            read_mask(path)
        assert caught.value.code == "mask_channels"


def test_a_fourth_sample_of_rgb_is_a_channel_unless_it_is_alpha_or_padding(tmp_path: Path) -> None:
    four = CHANNELS[:4].transpose(1, 2, 0).copy()
    assert read_image(write(tmp_path / "a.tif", four, photometric="rgb", extrasamples=["unspecified"])).channels == 4
    for kind in ("unassalpha", "assocalpha"):
        found = read_image(write(tmp_path / "b.tif", four, photometric="rgb", extrasamples=[kind]))
        assert (found.channels, bool(found.notices)) == (3, True)
        assert np.array_equal(found.array, CHANNELS[:3])
    four[..., 3] = 255
    for kind in ("unspecified", "unassalpha"):
        found = read_image(write(tmp_path / "c.tif", four, photometric="rgb", extrasamples=[kind]))
        assert (found.channels, bool(found.notices)) == (3, False)
    grey = write(
        tmp_path / "d.tif", CHANNELS[:2].transpose(1, 2, 0), photometric="minisblack", extrasamples=["unassalpha"]
    )
    assert (read_image(grey).channels, bool(read_image(grey).notices)) == (1, True)
    assert bool(read_mask(grey).notices)


@pytest.mark.parametrize("axes", ["ZYX", "QYX", "IYX", None])
def test_pages_are_slices_if_their_axis_says_so_or_has_no_name(tmp_path: Path, axes: str | None) -> None:
    path = write(tmp_path / "a.tif", STACK, photometric="minisblack", metadata={"axes": axes} if axes else None)
    found = read_image(path)
    assert (found.dimensions, found.channels, found.spacing) == (3, 1, None)
    assert np.array_equal(found.array[0], STACK)
    mask = read_mask(write(tmp_path / "b.tif", (STACK > 90).astype(np.uint8), photometric="minisblack"), like=found)
    check_pair(found, mask)


def test_pages_that_may_be_channels_are_named_where_the_mask_is_one_page(tmp_path: Path) -> None:
    found = read_image(write(tmp_path / "a.tif", CHANNELS[:2], photometric="minisblack", metadata=None))
    mask = read_mask(write(tmp_path / "b.tif", LABELS), like=found)
    with pytest.raises(ImageError, match=r"read as 2 slices.*If the pages are channels.*axis C") as caught:
        check_pair(found, mask)
    assert caught.value.code == "shape_mismatch"


@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_channels_and_slices_are_told_apart(tmp_path: Path, kind: str) -> None:
    zcyx = RNG.integers(0, 60000, (4, 3, 30, 40)).astype(np.uint16)
    path = write(tmp_path / "a.tif", zcyx, **{kind: True}, photometric="minisblack", metadata={"axes": "ZCYX"})
    found = read_image(path)
    assert (found.dimensions, found.channels) == (3, 3)
    assert np.array_equal(found.array, zcyx.swapaxes(0, 1))
    if kind == "ome":
        czyx = zcyx.swapaxes(0, 1)
        path = write(tmp_path / "b.tif", czyx, ome=True, photometric="minisblack", metadata={"axes": "CZYX"})
        assert np.array_equal(read_image(path).array, czyx)


def test_a_stack_of_colours_is_a_volume_in_colours(tmp_path: Path) -> None:
    colours = np.stack([RGB, 255 - RGB])
    for options in ({}, {"imagej": True, "metadata": {"axes": "ZYXS"}}, {"ome": True, "metadata": {"axes": "ZYXS"}}):
        found = read_image(write(tmp_path / "a.tif", colours, photometric="rgb", **options))
        assert (found.dimensions, found.channels) == (3, 3)
        assert np.array_equal(found.array, np.moveaxis(colours, -1, 0))


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_a_stack_of_imagej_with_one_page_has_all_its_slices(tmp_path: Path, byteorder: Any) -> None:
    deep = STACK.astype(np.uint16) * 200
    path = write(tmp_path / "a.tif", deep, imagej=True, byteorder=">", metadata={"axes": "ZYX"})
    assert len(tifffile.TiffFile(path).pages) == 4
    description = "ImageJ=1.54f\nimages=4\nslices=4\n"
    path.write_bytes(b"")
    with tifffile.TiffWriter(path, byteorder=byteorder) as writer:
        writer.write(deep, description=description, metadata=None, contiguous=True, photometric="minisblack")
    raw = one_page(path)
    assert np.array_equal(read_image(raw).array[0], deep)
    both = np.stack([STACK[:2], STACK[2:]])  # Z, C
    write(tmp_path / "b.tif", both, imagej=True, metadata={"axes": "ZCYX"})
    assert np.array_equal(read_image(one_page(tmp_path / "b.tif")).array, both.swapaxes(0, 1))
    raw.write_bytes(raw.read_bytes()[:-10])
    with pytest.raises(ImageError, match="holds 4 planes, and it has one page and no room"):
        read_image(raw)


def one_page(path: Path) -> Path:
    """Cut the chain of pages after the first one, and keep the pixels: how ImageJ writes large stacks."""
    with tifffile.TiffFile(path) as tif:
        page, order = tif.pages[0], tif.byteorder
        offset = page.offset
    data = bytearray(path.read_bytes())
    (count,) = struct.unpack_from(order + "H", data, offset)
    struct.pack_into(order + "I", data, offset + 2 + 12 * count, 0)
    # Pages lie behind the pixels or before them; the file has to end with the pixels for a cut to show.
    start, size = page.dataoffsets[0], 4 * page.nbytes
    pixels, header = bytes(data[start : start + size]), bytearray(data)
    moved = len(header)
    for entry in range(count):
        at = offset + 2 + 12 * entry
        if struct.unpack_from(order + "H", header, at)[0] == 273:
            struct.pack_into(order + "HHII", header, at, 273, 4, 1, moved)
    path.write_bytes(bytes(header) + pixels)
    return path


def test_tifffile_s_truncated_stack_has_all_its_slices(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", STACK, photometric="minisblack", metadata={"axes": "ZYX", "truncated": True})
    assert np.array_equal(read_image(path).array[0], STACK)
    tifffile.imwrite(path, STACK, photometric="minisblack", rowsperstrip=30, truncate=True)
    assert len(tifffile.TiffFile(path).pages) == 1
    assert np.array_equal(read_image(path).array[0], STACK)


@pytest.mark.parametrize("kind", ["imagej", "ome", "shaped"])
def test_a_time_series_is_refused_as_one(tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {} if kind == "shaped" else {kind: True}
    path = write(tmp_path / "a.tif", STACK, photometric="minisblack", metadata={"axes": "TYX"}, **options)
    with pytest.raises(ImageError, match=r"time series of 4 frames\. Give one time point") as caught:
        read_image(path)
    assert caught.value.code == "time_series"


def test_axes_that_do_not_fit_the_pages_are_refused(tmp_path: Path) -> None:
    for number, description in enumerate(
        (
            "ImageJ=1.54f\nimages=9\nslices=9\n",
            "ImageJ=1.54f\nimages=4\nchannels=3\nslices=2\n",
            "ImageJ=1.54f\nimages=-4\n",
            '{"shape": [3, 30, 40]}',
            '{"shape": [4, 30, 40], "axes": "HYX"}',
        )
    ):
        path = write(
            tmp_path / f"{number}.tif", STACK, photometric="minisblack", description=description, metadata=None
        )
        assert code_of(path) == "bad_axes", description
    unnamed = STACK.reshape(2, 2, 30, 40)
    with pytest.raises(ImageError, match="2 x 2 planes, and no axis has a name"):
        read_image(write(tmp_path / "e.tif", unnamed, photometric="minisblack"))
    ome = write(tmp_path / "f.ome.tif", STACK, photometric="minisblack", metadata={"axes": "ZYX"})
    ome.write_bytes(ome.read_bytes().replace(b'SizeZ="4"', b'SizeZ="7"'))
    assert code_of(ome) == "bad_axes"
    with tifffile.TiffWriter(tmp_path / "g.ome.tif") as writer:
        writer.write(STACK, photometric="minisblack", metadata={"axes": "ZYX"})
        writer.write(IMAGE, photometric="minisblack", metadata={"axes": "YX"})
    assert code_of(tmp_path / "g.ome.tif") == "several_images"


def test_previews_are_no_slices_and_foreign_pages_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(IMAGE, metadata=None)
        writer.write(IMAGE[::2, ::2], subfiletype=1, metadata=None)
    assert np.array_equal(read_image(tmp_path / "a.tif").array, IMAGE[None])
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        writer.write(IMAGE, metadata=None)
        writer.write(IMAGE.astype(np.uint16), metadata=None)
    assert code_of(tmp_path / "b.tif") == "mixed_pages"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"photometric": "cielab"}, "colour type CIELAB"),
        ({"photometric": "minisblack", "compression": "jpegxl"}, "compression JPEGXL"),
    ],
)
def test_what_cannot_be_read_rightly_is_named(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    array = RGB if options["photometric"] == "cielab" else IMAGE
    with pytest.raises(ImageError, match=text):
        read_image(write(tmp_path / "a.tif", array, **options))


def test_values_that_do_not_fit_are_refused_as_such(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"values from 0 to 1e\+300, which 32-bit numbers cannot hold"):
        read_image(write(tmp_path / "a.tif", np.where(LABELS > 0, 1e300, 0)))
    assert code_of(write(tmp_path / "b.tif", np.where(LABELS > 0, np.inf, 0))) == "not_finite"


def test_complex_values_and_too_many_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="complex64"):
        read_image(write(tmp_path / "a.tif", IMAGE.astype(np.complex64)))
    many = RNG.integers(0, 255, (30, 40, 17)).astype(np.uint8)
    for path in (
        write(tmp_path / "b.tif", many, photometric="minisblack", planarconfig="contig"),
        write(tmp_path / "c.tif", np.moveaxis(many, -1, 0), imagej=True, metadata={"axes": "CYX"}),
    ):
        with pytest.raises(ImageError, match=r"has 17 channels; 1 to 16 are read"):
            read_image(path)


def test_headers_are_checked_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = write(tmp_path / "a.tif", STACK, photometric="minisblack", metadata=None)
    floats = CHANNELS.transpose(1, 2, 0).astype(np.float32)
    wide = write(tmp_path / "b.tif", floats, photometric="minisblack", planarconfig="contig")
    monkeypatch.setattr(tifffile.TiffPage, "asarray", None)
    for limits, path, code in (
        ({"tiff_pages": 3}, stack, "too_many_pages"),
        ({"voxels": 4799}, stack, "too_many_pixels"),
        ({"pixels_2d": 1199}, wide, "too_many_pixels"),
        ({"volume_bytes": 5 * 4800 - 1}, wide, "too_large"),
        ({"channels": 4}, wide, "too_many_channels"),
    ):
        for module in (image, tiff, tiff_layout):
            monkeypatch.setattr(module, "LIMITS", image.Limits(**limits))
        assert code_of(path) == code


def test_a_chain_of_pages_that_runs_in_a_circle_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", STACK[:2], photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path) as tif:
        first, second = (int(page.offset) for page in tif.pages)
    data = bytearray(path.read_bytes())
    (count,) = struct.unpack_from("<H", data, second)
    struct.pack_into("<I", data, second + 2 + 12 * count, first)
    path.write_bytes(data)
    assert code_of(path) == "unreadable"


def test_a_tile_whose_own_header_is_larger_than_its_page_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", IMAGE, compression="jpeg")
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xc0")
    struct.pack_into(">2H", data, at + 5, 60000, 60000)
    path.write_bytes(data)
    with pytest.raises(ImageError, match="another size than the TIFF's header"):
        read_image(path)
