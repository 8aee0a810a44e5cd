"""Prepare images and label maps for the screen."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_core.errors import ImageError
from ml_core.io.image import GREY_OR_COLOUR, Image

_SAMPLES = 1_000_000


def is_oriented(image: Image) -> bool:
    """Whether the array axes of an image are directions in the body: true for a volume of known spacing."""
    return image.dimensions == 3 and image.spacing is not None


def to_screen(array: NDArray[Any], *, oriented: bool) -> NDArray[Any]:
    """Flip H and W of a RAS+ array (..., H, W) to the view of radiologists.

    Anterior is then at the top, and the patient's right on the left. An array that is not `oriented` is returned as it
    is. The result is a view, not a copy.
    """
    return array[..., ::-1, ::-1] if oriented else array


def display_volume(image: Image) -> NDArray[np.uint8]:
    """Return the whole image for the screen as (D, H, W, C) uint8; D is 1 for a 2D image, C is 1 or 3.

    Of an image with other channels than 1 or 3, the first three are shown as red, green and blue, and two as red and
    green, each in a window of its own.
    8-bit raster and 8-bit colour images keep their values. All others are windowed to the percentiles 0.5 to 99.5 of
    the whole image, so that the slices of a volume can be compared.
    """
    array = image.array if image.dimensions == 3 else image.array[:, None]
    shown = _shown(image, array)
    return np.ascontiguousarray(np.moveaxis(to_screen(shown, oriented=is_oriented(image)), 0, -1))


def display_slice(image: Image, index: int | None = None) -> NDArray[np.uint8]:
    """Return one slice along D for the screen as (H, W, 3) uint8, windowed like the whole image.

    Without an `index` it is the middle slice. Raises ImageError no_such_slice.
    """
    array = image.array if image.dimensions == 3 else image.array[:, None]
    depth = array.shape[1]
    index = depth // 2 if index is None else index
    if not 0 <= index < depth:
        raise ImageError("no_such_slice", f"There is no slice {index}.", f"Choose a slice from 0 to {depth - 1}.")
    shown = to_screen(_shown(image, array[:, index]), oriented=is_oriented(image))
    return to_rgb(np.moveaxis(shown, 0, -1))


def to_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn grey (H, W, 1) into RGB (H, W, 3); RGB stays as it is."""
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _shown(image: Image, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale `pixels`, a part of the image's array (C, ...), to uint8 (1 or 3, ...) by the values of the whole image."""
    array = image.array
    if image.channels in GREY_OR_COLOUR:
        if array.dtype == np.uint8 and (image.family == "raster" or image.channels == 3):
            return pixels
        return _windowed(array, pixels)
    # Channels of other kinds, such as stains, differ in brightness, so one window would show some of them black.
    colours = np.zeros((3, *pixels.shape[1:]), np.uint8)
    for channel in range(min(3, image.channels)):
        colours[channel] = _windowed(array[channel : channel + 1], pixels[channel : channel + 1])[0]
    return colours


def _windowed(array: NDArray[Any], pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale `pixels` to uint8 by the percentiles of `array` (C, ...)."""
    # Percentiles of every n-th pixel are close enough, and take far less time on a volume.
    step = max(1, round((array.size / _SAMPLES) ** (1 / (array.ndim - 1))))
    sample = array[(slice(None), *[slice(None, None, step)] * (array.ndim - 1))]
    low, high = (float(v) for v in np.percentile(sample, (0.5, 99.5)))
    # Both percentiles are equal in an image that is nearly constant, such as a few bright pixels on black.
    if high <= low:
        low, high = float(array.min()), float(array.max())
    scaled = (pixels.astype(np.float32) - np.float32(low)) * np.float32(255.0 / max(high - low, 1e-12))
    shown: NDArray[np.uint8] = np.clip(scaled, 0, 255).astype(np.uint8)
    return shown
