"""Turn decoded arrays into label maps, and refuse those that cannot be label maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_core.errors import ImageError
from ml_core.io.image import Coding

# Distinct values in one mask.
MAX_VALUES = 256
# A float may differ from a whole number by this much.
TOLERANCE = 1e-3
# Grey values up to this distance from 0 or 255 count as black or white in a lossy mask.
_SNAP = 48
_SAVE_PNG = "Save masks as PNG, without smoothing."


def as_labels(array: NDArray[Any], *, negative: bool = False) -> NDArray[Any]:
    """Convert an array to an integer label map of the same shape: uint8, uint16 or int32.

    Booleans become 0 and 1. Floats must lie within 1e-3 of whole numbers. Values must lie in 0..65535, the range of a
    PNG, or with `negative` (for NIfTI) in the range of int32. Raises ImageError with code not_integer or value_range.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise ImageError("not_integer", f"A mask cannot have values of type {array.dtype}.", _SAVE_PNG)
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("not_integer", "The mask holds NaN or infinite values.", "Save it with whole numbers.")
    bounds = (-(2**31), 2**31 - 1) if negative else (0, 65535)
    if low < bounds[0] or high > bounds[1]:
        raise ImageError(
            "value_range",
            f"The mask has values from {low:g} to {high:g}; {bounds[0]} to {bounds[1]} are allowed.",
            "Number the classes 0, 1, 2, ... and save it again.",
        )
    if array.dtype.kind == "f":
        whole = np.rint(array)
        if float(np.abs(array - whole).max()) > TOLERANCE:
            raise ImageError(
                "not_integer",
                "The mask has values between whole numbers, such as probabilities or smoothed edges.",
                "Threshold it, or resample it with nearest neighbour, and save whole numbers.",
            )
        array = whole
    labels: NDArray[Any] = array.astype(np.uint16 if low >= 0 and high <= 65535 else np.int32)
    return labels


def from_rgb(pixels: NDArray[Any]) -> tuple[NDArray[Any], Coding]:
    """Convert colours (..., 3) uint8 to labels (...) and their coding.

    If red, green and blue are equal everywhere, the labels are the grey values. Otherwise a label is the packed colour
    r<<16 | g<<8 | b. Raises ImageError unsupported_pixels or too_many_values.
    """
    if pixels.dtype != np.uint8:
        raise ImageError("unsupported_pixels", "A colour mask needs 8 bits per channel.", "Save it as 8-bit RGB PNG.")
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return np.ascontiguousarray(red), "values"
    packed = red.astype(np.int32)
    for channel in (green, blue):
        packed <<= 8
        packed |= channel
    _check_count(packed)
    return packed, "rgb"


def _check_count(labels: NDArray[Any]) -> None:
    """Raise ImageError too_many_values if a mask has more than 256 distinct colours."""
    count = np.unique(labels).size
    if count > MAX_VALUES:
        raise ImageError(
            "too_many_values",
            f"The mask has {count} distinct values; it looks like a photo or an anti-aliased mask.",
            "Check that it is the mask and not the image, and save it with one value per class, without smoothing.",
        )


def snap(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Restore a black-and-white mask that was compressed with loss: values near black become 0, the others 255.

    `pixels` are (..., H, W) grey or (..., H, W, 3) RGB uint8; the result has no colour axis. Raises ImageError
    lossy_mask unless 99% of the pixels are clearly black or white, since class values do not survive the compression.
    """
    if pixels.ndim == 3 and pixels.shape[-1] == 3:
        spread = pixels.max(axis=-1) - pixels.min(axis=-1)
        grey = bool(np.mean(spread <= _SNAP) >= 0.99)
        pixels = pixels[..., 1]
    else:
        grey = True
    clear = (pixels <= _SNAP) | (pixels >= 255 - _SNAP)
    if pixels.dtype != np.uint8 or not grey or clear.mean() < 0.99:
        raise ImageError(
            "lossy_mask",
            "The mask was saved with lossy (JPEG) compression, which smears class values, and it is not black and white.",
            "Save masks as PNG.",
        )
    return np.where(pixels >= 128, np.uint8(255), np.uint8(0))
