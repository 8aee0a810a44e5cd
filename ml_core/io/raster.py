"""Read PNG, JPEG and BMP with Pillow, and TIFF with `ml_core.io.tiff`; write label maps as PNG."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageOps

from ml_core.errors import ImageError
from ml_core.io import tiff
from ml_core.io.image import LIMITS, Coding, Grid, Image, Mask, Notice, check_finite, check_size, decoding, supported
from ml_core.io.masks import as_labels, from_rgb, snap
from ml_core.io.pixels import CURE, WHAT, Pixels, hex_colours, jpeg_frame, varies

_FORMATS = ["PNG", "JPEG", "BMP"]
# Pillow's transpositions by the number of an EXIF orientation.
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
# The first bytes of a file: enough for the signature of each format, and for the header of a PNG.
_HEAD = 26
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_ALPHA = (
    Notice(
        "dropped_alpha",
        "The file has an alpha channel (transparency) that varies, and it is not used. "
        "If it holds data, save it as a channel of its own.",
    ),
)
_DRAWN_IN_ALPHA = (
    Notice(
        "alpha_mask",
        "The mask has one colour everywhere and is drawn in its alpha channel (transparency), so that was read.",
    ),
)

# Pillow would warn above 89 megapixels. With our limit in its place, check_size decides, which gives a better message;
# Pillow itself refuses only above twice the limit.
PIL.Image.MAX_IMAGE_PIXELS = LIMITS.pixels_2d


def read_image(path: Path) -> Image:
    """Read one image. Slices of a TIFF are a volume, and its channels are channels. Raises ImageError.

    Palettes are expanded, and alpha is dropped. Values keep their bits. The spacing is None, also of a TIFF that tells
    one: most programs write a resolution that nobody measured, and none says how the slices lie in space.
    """
    pixels = _load(path, expand=True)
    array = supported(pixels.array)
    check_finite(array)
    grid = Grid(tuple(array.shape[1:]))
    return Image(array, None, None, "raster", None, None, grid, notices=_ALPHA if pixels.has_alpha else ())


def read_mask(path: Path) -> Mask:
    """Read one label map as the file stores it: grey values, palette indices or colours. Raises ImageError."""
    pixels = _load(path, expand=False)
    coding: Coding = "values"
    palette = None
    if len(pixels.array) > 1 and not pixels.is_rgb:
        raise ImageError(
            "mask_channels",
            f"The mask has {len(pixels.array)} channels, and a mask has one.",
            "Save one channel with a number for each class.",
        )
    interleaved = np.moveaxis(pixels.array, 0, -1) if pixels.is_rgb else pixels.array[0]
    if pixels.lossy:
        labels: NDArray[Any] = snap(interleaved)
    elif pixels.is_rgb:
        labels, coding = from_rgb(interleaved)
    else:
        labels = as_labels(interleaved)
    if pixels.palette is not None:
        present = np.flatnonzero(np.bincount(labels.ravel())).tolist()
        colours = {value: pixels.palette[value] for value in present if value < len(pixels.palette)}
        # A palette in which index i is grey i makes the file a plain grey one, so its colours mean nothing.
        palette = None if all(c == f"#{v:02x}{v:02x}{v:02x}" for v, c in colours.items()) else colours
    notices = _DRAWN_IN_ALPHA if pixels.is_alpha else _ALPHA if pixels.has_alpha else ()
    return Mask(labels, coding, palette, pixels.lossy, None, None, notices=notices)


def write_labels(values: NDArray[Any], path: Path, coding: Coding) -> None:
    """Write a label map, (H, W) integers, as a grey PNG of 8 or 16 bits, or as an RGB PNG for coding "rgb".

    Raises ImageError value_range if a value does not fit.
    """
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > (0xFFFFFF if coding == "rgb" else 0xFFFF):
        raise ImageError(
            "value_range",
            f"Label values from {low} to {high} cannot be saved as PNG.",
            "Number the classes from 0 to 65535.",
        )
    if coding == "rgb":
        pixels = np.stack([(values >> shift) & 255 for shift in (16, 8, 0)], axis=-1).astype(np.uint8)
    else:
        pixels = np.ascontiguousarray(values, dtype=np.uint8 if high < 256 else np.uint16)
    # A person waits for the file. Pillow's default level would take twice the time for a file a third smaller.
    PIL.Image.fromarray(pixels).save(path, format="PNG", compress_level=1)


def _load(path: Path, *, expand: bool) -> Pixels:
    with decoding(WHAT, CURE):
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if head[:4] in _TIFF:
            return tiff.load(path, expand=expand)
        if head[:2] == b"\xff\xd8":
            _check_jpeg(path)
        try:
            picture = PIL.Image.open(path, formats=_FORMATS)
        except PIL.Image.DecompressionBombError as error:
            raise ImageError(
                "too_many_pixels",
                f"The image has more than {LIMITS.pixels_2d:,} pixels.",
                "Cut it into tiles, crop it or scale it down.",
            ) from error
        with picture:
            check_size((picture.height, picture.width))
            # Of an animated PNG or a phone's multi-picture JPEG, the first picture is read.
            return _pixels(picture, path, head, expand=expand)


def _pixels(picture: PIL.Image.Image, path: Path, head: bytes, *, expand: bool) -> Pixels:
    lossy = picture.format in ("JPEG", "MPO")
    # The bit depth and colour type of a PNG, because Pillow's modes do not tell them.
    depth, kind = (head[24], head[25]) if picture.format == "PNG" else (8, 0)
    palette, mode = None, picture.mode
    # Pillow reduces 16-bit colours and 16-bit grey with alpha to 8 bits, which turns 12-bit data black.
    deep = _deep_png(picture, path) if depth == 16 and kind in (2, 4, 6) else None
    # Viewers rotate a picture by its EXIF orientation, so people draw masks on the rotated picture.
    ImageOps.exif_transpose(picture, in_place=True)
    if mode in ("P", "PA"):
        table = np.array(picture.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
        if expand:
            grey = bool((table[:, :1] == table).all())
            return _channels(np.asarray(picture.convert("L" if grey else "RGB")), lossy=lossy)
        palette = hex_colours(table)
    elif mode in ("CMYK", "YCbCr"):
        picture, mode = picture.convert("RGB"), "RGB"
    if mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "I", "I;16", "I;16B", "I;16L"):
        raise ImageError("unsupported_pixels", f"The colour mode {mode} is not supported.", "Save it as grey or RGB.")
    array = np.asarray(picture) if deep is None else deep
    has_alpha = is_alpha = False
    if kind in (4, 6) or mode in ("LA", "PA", "RGBA"):
        alpha, array = array[..., -1], array[..., :-1]
        has_alpha = varies(alpha)
        # A mask that was saved from a layer of one colour is drawn in its transparency.
        is_alpha = has_alpha and not expand and not any(varies(channel) for channel in np.moveaxis(array, -1, 0))
        if is_alpha:
            array, palette = alpha, None
    elif mode == "RGBX":
        array = array[..., :3]
    if mode == "1":
        # Pillow's True can be any byte except 0, while numpy's arithmetic expects the byte 1.
        array = (array.view(np.uint8) != 0).astype(np.uint8)
        array *= np.uint8(255 if expand else 1)
    # Pillow spreads grey of 2 or 4 bits over 0..255. A mask needs the stored values back.
    if not expand and kind == 0 and depth in (2, 4):
        array = array // np.uint8(255 // (2**depth - 1))
    pixels = _channels(array, palette, lossy=lossy, has_alpha=has_alpha)
    return replace(pixels, is_alpha=is_alpha)


def _check_jpeg(path: Path) -> None:
    """Refuse a JPEG that Pillow would call damaged because it has more than 8 bits per channel."""
    with path.open("rb") as file:
        frame = jpeg_frame(file.read(1 << 16))
    if frame is not None and frame.bits > 8:
        raise ImageError(
            "unsupported_pixels",
            f"The JPEG has {frame.bits} bits per channel, and 8 are read.",
            "Save it as 16-bit PNG or TIFF.",
        )


def _channels(array: NDArray[Any], palette: list[str] | None = None, *, lossy: bool, has_alpha: bool = False) -> Pixels:
    """Bring (H, W) or (H, W, C) to (C, H, W)."""
    array = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    return Pixels(array, len(array) == 3, palette, lossy, has_alpha)


def _deep_png(picture: PIL.Image.Image, path: Path) -> NDArray[np.uint16]:
    """Decode a PNG of 16 bits per channel, (H, W, C) uint16, turned by its EXIF orientation like Pillow's pictures."""
    pixels: NDArray[np.uint16] = imagecodecs.png_decode(path.read_bytes())
    if pixels.dtype != np.uint16 or pixels.shape[:2] != (picture.height, picture.width):
        raise ValueError("The decoded pixels differ from the header.")
    if picture.mode == "RGB":
        # One of the colours may stand for transparency. It is a colour all the same.
        pixels = pixels[..., :3]
    turn = _TURNS.get(picture.getexif().get(0x0112, 1))
    if turn is None:
        return pixels
    # Pillow turns a picture of numbers, which say where each pixel goes.
    places = PIL.Image.fromarray(np.arange(pixels.shape[0] * pixels.shape[1], dtype=np.int32).reshape(pixels.shape[:2]))
    turned: NDArray[np.uint16] = pixels.reshape(-1, pixels.shape[2])[np.asarray(places.transpose(turn))]
    return turned
