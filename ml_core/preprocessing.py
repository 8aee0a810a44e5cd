"""From a decoded image to what a network is fed. The one function that training, validation, inference and export use."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_core.io import Image, is_oriented, to_screen


@dataclass(frozen=True)
class Preprocessing:
    """How images are made ready; kept in the model package.

    channels: 1 or 3. normalisation: "ct" clips to [low, high] (in the image's own units) and scales by the dataset's mean and
    std; "image" clips each channel of each image to its 0.5 and 99.5 percentile and scales by its own mean and std.
    slice_axis: the axis of a canonical (z, y, x) volume across which slices are taken.
    """

    channels: int
    normalisation: str
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 1.0
    slice_axis: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def preprocess(image: Image, how: Preprocessing) -> NDArray[np.float32]:
    """(N, C, H, W) float32: N = 1 for a picture, the number of slices for a volume.

    Oriented volumes are laid as on the screen, which is how single slices are stored: a model sees both alike.
    """
    array = _with_channels(to_screen(image.array, oriented=is_oriented(image)), how.channels)
    scaled = np.stack([_normalise(channel, how) for channel in array])
    slices = scaled[None] if image.dimensions == 2 else np.moveaxis(scaled, how.slice_axis + 1, 0)
    return np.ascontiguousarray(slices)


def labels_to_slices(labels: NDArray[Any], image: Image, slice_axis: int) -> NDArray[Any]:
    """The label map of `image` as `preprocess` lays the image: (H, W) → (1, H, W); (D, H, W) → (slices, …). A view."""
    if labels.ndim == 2:
        return labels[None]
    return np.moveaxis(to_screen(labels, oriented=is_oriented(image)), slice_axis, 0)


def slices_to_labels(slices: NDArray[Any], image: Image, slice_axis: int) -> NDArray[Any]:
    """The inverse of labels_to_slices."""
    if image.dimensions == 2:
        picture: NDArray[Any] = slices[0]
        return picture
    volume: NDArray[Any] = np.moveaxis(slices, 0, slice_axis)
    return to_screen(volume, oriented=is_oriented(image))


def _with_channels(array: NDArray[Any], channels: int) -> NDArray[Any]:
    if len(array) == channels:
        return array
    if channels == 3:
        return np.repeat(array[:1], 3, axis=0)
    weights = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601 luma
    return np.tensordot(weights, array.astype(np.float32), axes=1)[None]


def _normalise(channel: NDArray[Any], how: Preprocessing) -> NDArray[np.float32]:
    if how.normalisation == "ct":
        scaled = np.clip(channel, how.low, how.high).astype(np.float32)
        fixed: NDArray[np.float32] = (scaled - np.float32(how.mean)) / np.float32(max(how.std, 1e-6))
        return fixed
    step = max(1, channel.size // 1_000_000)
    low, high = np.percentile(channel.reshape(-1)[::step], [0.5, 99.5])
    if low == high:
        low, high = channel.min(), channel.max()
    clipped = np.clip(channel, low, high).astype(np.float32)
    own: NDArray[np.float32] = (clipped - clipped.mean()) / np.float32(max(float(clipped.std()), 1e-6))
    return own
