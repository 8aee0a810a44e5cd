"""Read PNG, JPEG, TIFF and BMP with Pillow, and write label maps as PNG."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageOps

from ml_core.errors import ImageError
from ml_core.io.image import LIMITS, Coding, Grid, Image, Mask, check_finite, check_size, decoding, supported
from ml_core.io.masks import as_labels, from_rgb, snap

_FORMATS = ["PNG", "JPEG", "TIFF", "BMP"]
_WHAT, _CURE = "image file", "Open it in an image program and save it again as PNG or TIFF."

# Pillow would warn above 89 megapixels. With our limit in its place, check_size decides, which gives a better message;
# Pillow itself refuses only above twice the limit.
PIL.Image.MAX_IMAGE_PIXELS = LIMITS.pixels_2d


@dataclass(frozen=True)
class _Pixels:
    """The decoded pixels of a file."""

    array: NDArray[Any]
    """(H, W), (H, W, 3), (D, H, W) or (D, H, W, 3)."""
    colour: bool
    """The last axis is red, green and blue."""
    palette: list[str] | None
    """The colour "#rrggbb" of each palette index; None if `array` holds no indices."""
    lossy: bool
    """The pixels were compressed with loss (JPEG)."""


def read_image(path: Path) -> Image:
    """Read one image. A TIFF of several pages is a volume. Raises ImageError.

    Palettes are expanded, alpha is dropped, and 16-bit colour is reduced to 8 bits per channel.
    """
    pixels = _load(path, expand=True)
    array = np.moveaxis(pixels.array, -1, 0) if pixels.colour else pixels.array[None]
    array = supported(array)
    check_finite(array)
    shape = tuple(array.shape[1:])
    return Image(array, None, None, "raster", None, None, Grid(shape))


def read_mask(path: Path) -> Mask:
    """Read one label map as the file stores it: grey values, palette indices or colours. Raises ImageError."""
    pixels = _load(path, expand=False)
    coding: Coding = "values"
    palette = None
    if pixels.lossy:
        labels: NDArray[Any] = snap(pixels.array)
    elif pixels.colour:
        labels, coding = from_rgb(pixels.array)
    else:
        labels = as_labels(pixels.array)
    if pixels.palette is not None:
        present = np.flatnonzero(np.bincount(labels.ravel())).tolist()
        colours = {value: pixels.palette[value] for value in present if value < len(pixels.palette)}
        # A palette in which index i is grey i makes the file a plain grey one, so its colours mean nothing.
        palette = None if all(c == f"#{v:02x}{v:02x}{v:02x}" for v, c in colours.items()) else colours
    return Mask(labels, coding, palette, pixels.lossy, None, None)


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


def _load(path: Path, *, expand: bool) -> _Pixels:
    with decoding(_WHAT, _CURE):
        try:
            picture = PIL.Image.open(path, formats=_FORMATS)
        except PIL.Image.DecompressionBombError as error:
            raise ImageError(
                "too_many_pixels",
                f"The image has more than {LIMITS.pixels_2d:,} pixels.",
                "Cut it into tiles, crop it or scale it down.",
            ) from error
        with picture:
            size = (picture.height, picture.width)
            check_size(size)
            # Only the pages of a TIFF are a volume. Of an animated PNG or a phone's multi-picture JPEG, the first
            # picture is read.
            pages = int(getattr(picture, "n_frames", 1)) if picture.format == "TIFF" else 1
            if pages == 1:
                return _page(picture, path, expand=expand)
            check_size((pages, *size))
            return _stack(picture, path, pages, expand=expand)


def _stack(picture: PIL.Image.Image, path: Path, pages: int, *, expand: bool) -> _Pixels:
    """Read all pages of a TIFF as one volume. It is filled page by page, so that it is in memory only once."""
    size, first = picture.size, _page(picture, path, expand=expand)
    volume = np.empty((pages, *first.array.shape), dtype=first.array.dtype)
    volume[0] = first.array
    palette = first.palette
    for index in range(1, pages):
        picture.seek(index)
        # The size is compared before decoding, because the size limit was checked for the first page only.
        page = _page(picture, path, expand=expand) if picture.size == size else None
        if page is None or page.array.shape != first.array.shape or page.array.dtype != first.array.dtype:
            raise ImageError(
                "mixed_pages",
                f"Page {index + 1} of the TIFF has another size or pixel type than page 1.",
                "Save a volume with equal pages, or each picture as its own file (without preview pages).",
            )
        if page.palette != palette:
            raise ImageError(
                "mixed_pages",
                f"Page {index + 1} of the TIFF has another palette than page 1.",
                "Save all pages with the same palette.",
            )
        volume[index] = page.array
    return _Pixels(volume, first.colour, palette, first.lossy)


def _page(picture: PIL.Image.Image, path: Path, *, expand: bool) -> _Pixels:
    lossy = picture.format in ("JPEG", "MPO") or picture.info.get("compression") in ("jpeg", "tiff_jpeg")
    if lossy or picture.format == "PNG":
        # Viewers rotate a picture by its EXIF orientation, so people draw masks on the rotated picture. Pillow rotates
        # a TIFF itself while loading it.
        ImageOps.exif_transpose(picture, in_place=True)
    depth, kind = _png_header(path) if picture.format == "PNG" else (8, 0)
    if depth == 16 and kind != 0 and not expand:
        raise ImageError(
            "unsupported_pixels",
            "The mask is a PNG with 16 bits per colour or alpha channel.",
            "Save it as 16-bit grey or 8-bit RGB PNG.",
        )
    palette = None
    mode = picture.mode
    if mode in ("P", "PA"):
        table = np.array(picture.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
        if expand:
            grey = bool((table[:, :1] == table).all())
            return _Pixels(np.asarray(picture.convert("L" if grey else "RGB")), not grey, None, lossy)
        palette = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in table.tolist()]
    elif mode in ("CMYK", "YCbCr"):
        picture, mode = picture.convert("RGB"), "RGB"
    if mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "I", "I;16", "I;16B", "I;16L", "F"):
        raise ImageError("unsupported_pixels", f"The colour mode {mode} is not supported.", "Save it as grey or RGB.")
    array = np.asarray(picture)
    # Grey with alpha keeps its grey channel. Pillow opens the 16-bit form of it (PNG colour type 4) as RGBA.
    if kind == 4 or mode in ("LA", "PA"):
        array = array[..., 0]
    elif mode in ("RGBA", "RGBX"):
        array = array[..., :3]
    if mode == "1":
        # Pillow's True can be any byte except 0, while numpy's arithmetic expects the byte 1.
        array = (array.view(np.uint8) != 0).astype(np.uint8)
        array *= np.uint8(255 if expand else 1)
    # Pillow spreads grey of 2 or 4 bits over 0..255. A mask needs the stored values back.
    if not expand and kind == 0 and depth in (2, 4):
        array = array // np.uint8(255 // (2**depth - 1))
    return _Pixels(array, array.ndim == 3, palette, lossy)


def _png_header(path: Path) -> tuple[int, int]:
    """Read the bit depth and colour type of a PNG from its header, because Pillow's modes do not tell them."""
    with path.open("rb") as file:
        header = file.read(26)
    return header[24], header[25]
