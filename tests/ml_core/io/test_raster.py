"""PNG, JPEG, TIFF and BMP: what is stored comes back, as image and as mask."""

from __future__ import annotations

import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image
import pytest

from ml_core.io import (
    Grid,
    Image,
    ImageError,
    display_slice,
    display_volume,
    image,
    read_image,
    read_mask,
    write_label_map,
)
from tests.synthetic import (
    COLOURS,
    Array,
    draw_pair,
    write_bmp,
    write_jpg,
    write_palette,
    write_png,
    write_rgb_mask,
    write_tiff,
)

IMAGE, LABELS = draw_pair(np.random.default_rng(1), 40, classes=3)
IMAGE, LABELS = IMAGE[:30], LABELS[:30]  # not square, so that a swapped axis shows
RGB = np.stack([IMAGE, 255 - IMAGE, LABELS * 40], axis=-1).astype(np.uint8)


def code_of(path: Path, *, mask: bool = False) -> str:
    with pytest.raises(ImageError) as caught:
        (read_mask if mask else read_image)(path)
    assert caught.value.reason.endswith(".")
    assert caught.value.cure.endswith(".")
    assert str(path.parent) not in str(caught.value)
    return caught.value.code


@pytest.mark.parametrize("array", [IMAGE, IMAGE.astype(np.uint16) * 200], ids=["8 bit", "16 bit"])
def test_grey_png_comes_back_as_it_is(tmp_path: Path, array: Array) -> None:
    found = read_image(write_png(tmp_path / "a.png", array))
    assert (found.array.dtype, found.array.shape) == (array.dtype, (1, 30, 40))
    assert np.array_equal(found.array[0], array)
    assert (found.family, found.spacing, found.affine, found.dimensions) == ("raster", None, None, 2)


@pytest.mark.parametrize("write", [write_png, write_tiff, write_bmp])
def test_colour_comes_channel_first(tmp_path: Path, write: object) -> None:
    assert callable(write)
    write(tmp_path / "a", RGB)
    assert np.array_equal(read_image(tmp_path / "a").array, RGB.transpose(2, 0, 1))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_a_png_of_16_bits_keeps_them(tmp_path: Path, channels: int) -> None:
    # Values of 12 bits, which 8 bits per channel would turn black.
    deep = np.random.default_rng(3).integers(0, 4096, (30, 40, channels)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(deep))
    found = read_image(tmp_path / "a.png")
    colours = deep[..., : 1 if channels == 2 else 3]
    assert found.array.dtype == np.uint16
    assert np.array_equal(found.array, colours.transpose(2, 0, 1))
    assert bool(found.notices) == (channels in (2, 4))
    deep[..., 0], deep[..., -1] = LABELS.astype(np.uint16) * 300, 65535
    (tmp_path / "b.png").write_bytes(imagecodecs.png_encode(deep))
    if channels == 2:
        mask = read_mask(tmp_path / "b.png")
        assert np.array_equal(mask.values, LABELS.astype(int) * 300)
        assert not bool(mask.notices)
    else:
        assert code_of(tmp_path / "b.png", mask=True) == "unsupported_pixels"


def test_a_png_of_16_bits_is_turned_and_keeps_a_colour_that_stands_for_transparency(tmp_path: Path) -> None:
    deep = np.random.default_rng(3).integers(0, 4096, (30, 40, 3)).astype(np.uint16)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    plain = bytes(imagecodecs.png_encode(deep))
    for kind, content in ((b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")), (b"tRNS", bytes(6))):
        chunk = len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
        (tmp_path / "a.png").write_bytes(plain[:33] + chunk + plain[33:])
        expected = np.rot90(deep, -1) if kind == b"eXIf" else deep
        assert np.array_equal(read_image(tmp_path / "a.png").array, expected.transpose(2, 0, 1))


def test_a_jpeg_of_12_bits_is_refused_as_what_it_is(tmp_path: Path) -> None:
    deep = (IMAGE.astype(np.uint16) * 16).repeat(2, 0)
    for options in ({"level": 95}, {"lossless": True}):
        (tmp_path / "a.jpg").write_bytes(imagecodecs.jpeg8_encode(deep, bitspersample=12, **options))
        with pytest.raises(ImageError, match="has 12 bits per channel"):
            read_image(tmp_path / "a.jpg")


def test_alpha_that_varies_is_told(tmp_path: Path) -> None:
    for alpha, told in ((IMAGE, True), (np.full_like(IMAGE, 7), False)):
        path = write_png(tmp_path / "a.png", np.dstack([RGB, alpha]))
        assert bool(read_image(path).notices) == told
        assert bool(read_mask(write_png(tmp_path / "b.png", np.dstack([LABELS, alpha]))).notices) == told


@pytest.mark.parametrize(("mode", "channels"), [("LA", 1), ("RGBA", 3), ("L", 1)])
def test_alpha_is_dropped(tmp_path: Path, mode: str, channels: int) -> None:
    found = read_image(write_png(tmp_path / "a.png", IMAGE, mode))
    assert found.channels == channels
    assert np.array_equal(found.array[-1], IMAGE)


def test_palette_images_are_expanded_and_grey_palettes_stay_one_channel(tmp_path: Path) -> None:
    colour = read_image(write_palette(tmp_path / "a.png", LABELS))
    assert np.array_equal(np.moveaxis(colour.array, 0, -1), np.array(COLOURS)[LABELS])
    grey = read_image(write_palette(tmp_path / "b.png", LABELS, [(0, 0, 0), (90, 90, 90), (200, 200, 200)]))
    assert np.array_equal(grey.array[0], np.array([0, 90, 200])[LABELS])


def test_one_bit_is_black_and_white_as_image_and_0_1_as_mask(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", LABELS > 0)
    assert np.array_equal(read_image(path).array[0], np.where(LABELS > 0, 255, 0))
    assert np.array_equal(read_mask(path).values, LABELS > 0)


def test_jpeg_is_turned_by_its_exif_orientation(tmp_path: Path) -> None:
    turned = read_image(write_jpg(tmp_path / "a.jpg", IMAGE, orientation=6)).array[0]
    plain = read_image(write_jpg(tmp_path / "b.jpg", IMAGE)).array[0]
    assert np.array_equal(turned, np.rot90(plain, -1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_tiff_pages_are_a_volume(tmp_path: Path, dtype: type) -> None:
    pages: list[Array] = [(IMAGE + shift).astype(dtype) for shift in (0, 1, 2)]
    found = read_image(write_tiff(tmp_path / "a.tif", pages))
    assert (found.array.dtype, found.shape, found.dimensions) == (np.dtype(dtype), (3, 30, 40), 3)
    assert np.array_equal(found.array[0], np.stack(pages))
    written = write_label_map(np.stack([LABELS] * 3), found, tmp_path)
    assert written.name == "labels.nii.gz"
    assert np.array_equal(read_mask(written).values, np.stack([LABELS] * 3))


def test_tiff_pages_of_two_sizes_are_refused(tmp_path: Path) -> None:
    assert code_of(write_tiff(tmp_path / "a.tif", [IMAGE, IMAGE[:9]])) == "mixed_pages"


def test_float_images_must_be_finite_and_float_masks_whole(tmp_path: Path) -> None:
    assert code_of(write_tiff(tmp_path / "a.tif", np.where(LABELS > 0, np.nan, 1).astype(np.float32))) == "not_finite"
    near = write_tiff(tmp_path / "b.tif", (LABELS + 4e-4).astype(np.float32))
    assert np.array_equal(read_mask(near).values, LABELS)
    assert code_of(write_tiff(tmp_path / "c.tif", (LABELS * 0.5).astype(np.float32)), mask=True) == "not_integer"
    assert code_of(write_tiff(tmp_path / "d.tif", LABELS.astype(np.int32) - 1), mask=True) == "value_range"


def test_palette_mask_keeps_indices_and_colours(tmp_path: Path) -> None:
    mask = read_mask(write_palette(tmp_path / "a.png", LABELS))
    assert np.array_equal(mask.values, LABELS)
    assert mask.palette == {0: "#000000", 1: "#c81e1e", 2: "#1ec81e"}


def test_colour_mask_is_coded_and_grey_rgb_is_plain(tmp_path: Path) -> None:
    mask = read_mask(write_rgb_mask(tmp_path / "a.png", LABELS))
    assert mask.coding == "rgb"
    assert np.array_equal(mask.values, np.array([0, 0xC81E1E, 0x1EC81E])[LABELS])
    written = write_label_map(mask.values, read_image(tmp_path / "a.png"), tmp_path, coding="rgb")
    assert np.array_equal(read_mask(written).values, mask.values)
    plain = read_mask(write_png(tmp_path / "b.png", LABELS, "RGB"))
    assert plain.coding == "values"
    assert np.array_equal(plain.values, LABELS)


def test_two_bit_grey_mask_gives_the_stored_values(tmp_path: Path) -> None:
    # Pillow writes no 2-bit grey; a 2-bit palette PNG with its palette cut out and colour type 0 is one.
    png = write_palette(tmp_path / "a.png", LABELS).read_bytes()
    assert png[24:26] == b"\x02\x03"
    header = png[12:25] + b"\0" + png[26:29]
    start = png.index(b"PLTE") - 4
    end = start + 12 + int.from_bytes(png[start : start + 4], "big")
    grey = png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:start] + png[end:]
    (tmp_path / "b.png").write_bytes(grey)
    assert np.array_equal(read_mask(tmp_path / "b.png").values, LABELS)
    assert np.array_equal(read_image(tmp_path / "b.png").array[0], LABELS * 85)


def test_jpeg_mask_is_snapped_when_black_and_white_else_refused(tmp_path: Path) -> None:
    truth = np.kron(LABELS > 0, np.ones((8, 8), bool))
    mask = read_mask(write_jpg(tmp_path / "a.jpg", np.where(truth, 255, 0).astype(np.uint8)))
    assert mask.lossy
    assert set(np.unique(mask.values)) == {0, 255}
    assert np.mean((mask.values == 255) == truth) > 0.99
    assert code_of(write_jpg(tmp_path / "b.jpg", IMAGE), mask=True) == "lossy_mask"


def test_photo_as_mask_is_refused(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    assert code_of(write_png(tmp_path / "b.png", colours), mask=True) == "too_many_values"


def test_label_map_is_png_of_the_needed_depth(tmp_path: Path) -> None:
    like = read_image(write_png(tmp_path / "a.png", IMAGE))
    for values in (LABELS, LABELS.astype(np.int64) * 300):
        path = write_label_map(values, like, tmp_path)
        assert np.array_equal(np.asarray(PIL.Image.open(path)), values)
        assert np.array_equal(read_mask(path).values, values)
    with pytest.raises(ImageError, match="cannot be saved as PNG"):
        write_label_map(LABELS.astype(np.int32) - 1, like, tmp_path)
    with pytest.raises(ValueError, match="shape"):
        write_label_map(LABELS.T, like, tmp_path)


def test_size_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_png(tmp_path / "a.png", IMAGE)
    path.write_bytes(path.read_bytes()[:60])  # undecodable, but its header is whole
    monkeypatch.setattr(image, "LIMITS", image.Limits(pixels_2d=1199, voxels=2399))
    assert code_of(path) == "too_many_pixels"
    assert code_of(write_tiff(tmp_path / "a.tif", [IMAGE[:29]] * 3)) == "too_many_pixels"


def test_display_keeps_8_bit_and_windows_the_rest(tmp_path: Path) -> None:
    assert np.array_equal(display_slice(read_image(write_png(tmp_path / "a.png", RGB))), RGB)
    wide = np.linspace(1000, 3000, 1200).reshape(30, 40).astype(np.uint16)
    wide[0, 0] = 65535  # one hot pixel must not darken the rest
    shown = display_slice(read_image(write_png(tmp_path / "b.png", wide)))
    assert shown.shape == (30, 40, 3)
    assert shown[0, 20].max() < 20
    assert shown[-1, -1].min() == 255
    assert 100 < shown[15, 0, 0] < 160


def test_channels_that_are_no_colours_are_shown_in_windows_of_their_own() -> None:
    dim, bright = np.linspace(0, 9, 1200).reshape(30, 40), np.linspace(9000, 0, 1200).reshape(30, 40)
    for count in (2, 4):
        array = np.stack([dim, bright, dim, bright][:count]).astype(np.float32)
        found = Image(array, None, None, "raster", None, None, Grid((30, 40)))
        shown = display_slice(found)
        assert shown.shape == (30, 40, 3)
        assert (shown[-1, -1, 0], shown[0, 0, 1], shown[0, 0, 0]) == (255, 255, 0)
        assert shown[..., 2].max() == (0 if count == 2 else 255)
        assert np.array_equal(display_volume(found)[0], shown)


@pytest.mark.parametrize("colour", [[], [0], [200], [0, 0, 0], [255, 0, 0]])
def test_a_mask_that_is_drawn_in_its_transparency_is_read_there(tmp_path: Path, colour: list[int]) -> None:
    alpha = np.where(LABELS > 0, 255, 0).astype(np.uint8)
    layers = [np.full(LABELS.shape, level, np.uint8) for level in colour]
    mask = read_mask(write_png(tmp_path / "a.png", np.dstack([*layers, alpha]) if layers else alpha))
    assert np.array_equal(mask.values, alpha)
    assert [notice.code for notice in mask.notices] == (["alpha_mask"] if layers else [])
    if len(layers) == 3:
        assert read_image(tmp_path / "a.png").channels == 3
