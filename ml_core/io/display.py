"""Images and label maps as people want to see them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_core.errors import ImageError
from ml_core.io.image import Image

_SAMPLES = 1_000_000


def is_oriented(image: Image) -> bool:
    """True for a volume whose axes mean directions in the body."""
    return image.dimensions == 3 and image.spacing is not None


def to_screen(array: NDArray[Any], *, oriented: bool) -> NDArray[Any]:
    """(…, H, W) of a canonical (R, A, S) volume → rows from anterior down, the patient's right on the left, as radiologists look.

    Pictures and stacks without orientation stay as they are. A view.
    """
    return array[..., ::-1, ::-1] if oriented else array


def display_volume(image: Image) -> NDArray[np.uint8]:
    """(D, H, W, C) uint8 for the screen, D = 1 for a picture, C = 1 or 3.

    8-bit raster and colour images are shown as they are. All others are windowed to the 0.5..99.5 percentile of the
    whole image, so that the slices of a volume can be compared.
    """
    array = image.array if image.dimensions == 3 else image.array[:, None]
    shown = _windowed(image, array)
    return np.ascontiguousarray(np.moveaxis(to_screen(shown, oriented=is_oriented(image)), 0, -1))


def display_slice(image: Image, index: int | None = None) -> NDArray[np.uint8]:
    """The same of one slice along D, as (H, W, 3); by default the middle one. Raises ImageError no_such_slice."""
    array = image.array if image.dimensions == 3 else image.array[:, None]
    depth = array.shape[1]
    index = depth // 2 if index is None else index
    if not 0 <= index < depth:
        raise ImageError("no_such_slice", f"There is no slice {index}.", f"Choose a slice from 0 to {depth - 1}.")
    shown = to_screen(_windowed(image, array[:, index]), oriented=is_oriented(image))
    return to_rgb(np.moveaxis(shown, 0, -1))


def to_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 1 or 3) → (H, W, 3)."""
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _windowed(image: Image, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """`pixels`, a part of the image's array, as uint8."""
    array = image.array
    if array.dtype == np.uint8 and (image.family == "raster" or image.channels == 3):
        return pixels
    # A regular sample is enough for percentiles, and quick on volumes.
    step = max(1, round((array.size / _SAMPLES) ** (1 / (array.ndim - 1))))
    sample = array[(slice(None), *[slice(None, None, step)] * (array.ndim - 1))]
    low, high = (float(v) for v in np.percentile(sample, (0.5, 99.5)))
    if high <= low:  # nearly constant, such as a few bright pixels on black
        low, high = float(array.min()), float(array.max())
    scaled = (pixels.astype(np.float32) - np.float32(low)) * np.float32(255.0 / max(high - low, 1e-12))
    shown: NDArray[np.uint8] = np.clip(scaled, 0, 255).astype(np.uint8)
    return shown
