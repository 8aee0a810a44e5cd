"""Turns a decoded image into the array that a network is fed, and label maps back onto the image's grid.

Training, validation, inference and export all use these functions, so that a model sees the same input everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (everybody's name for it)
from numpy.typing import NDArray
from torch import Tensor

from ml_core.dataset.fingerprint import CLIPPED, body_of
from ml_core.errors import ImageError
from ml_core.io import GREY_OR_COLOUR, Image, is_oriented, to_screen
from ml_core.planning.plan import Preprocessing

# Percentiles to clip at where CLIPPED would cut off a class. They cut ten pixels of a megapixel at each end.
WIDE = (0.001, 99.999)
# An axis whose spacing is within two percent of the target is not resampled.
AS_GOOD_AS_THE_SAME = 0.02


def preprocess(image: Image, how: Preprocessing) -> NDArray[np.float32]:
    """Normalise an image and resample it to the network's grid (`network_shape`).

    Returns float32 (N, C, H, W), where N is 1 for a picture and the number of slices for a volume; (1, C, D, H, W) if
    `how.whole`. Raises ImageError other_channels if the image does not have `how.channels`; grey serves as colour, and
    colour as grey. Oriented volumes are turned the way a screen shows them. Single slices are stored that way too, so a
    model sees both alike.
    """
    array = _with_channels(to_screen(image.array, oriented=is_oriented(image)), how.channels)
    scaled = np.stack([_normalise(channel, how) for channel in array])
    if image.dimensions == 2:
        arranged = scaled[:, None] if how.whole else scaled[None]
    else:
        arranged = np.moveaxis(scaled, how.slice_axis + 1, 1 if how.whole else 0)
    shape = network_shape(image, how)
    if how.whole:
        return np.ascontiguousarray(resample(torch.from_numpy(np.ascontiguousarray(arranged)), shape).numpy()[None])
    if tuple(arranged.shape[2:]) == shape[1:]:
        return np.ascontiguousarray(arranged)
    resized = torch.empty(len(arranged), how.channels, *shape[1:])
    # Slices are resampled one at a time, because a second copy of a whole volume may not fit into memory.
    for index, picture in enumerate(arranged):
        resized[index] = resample(torch.from_numpy(np.ascontiguousarray(picture)), shape[1:])
    return resized.numpy()


def labels_to_network(labels: NDArray[np.uint8], image: Image, how: Preprocessing) -> NDArray[np.uint8]:
    """Bring class positions from the image's grid to the network's, with the axes in the order that `preprocess` gives.

    Returns uint8 (N, H, W) or (1, D, H, W). Each pixel gets the class with the largest share in it, so that thin
    structures keep their width when the grid gets coarser.
    """
    slices = labels_to_slices(labels, image, how.slice_axis)
    shape = network_shape(image, how)
    if tuple(slices.shape) != shape:
        slices = _resample_labels(np.ascontiguousarray(slices), shape, along_slices=how.whole)
    return np.ascontiguousarray(slices[None] if how.whole else slices)


def network_shape(image: Image, how: Preprocessing) -> tuple[int, int, int]:
    """(slices, H, W) of the image on the network's grid; a picture has 1 slice.

    A 2D network gets every slice of a volume: only rows and columns are resampled.
    """
    lengths = _laid((1, *image.shape) if image.dimensions == 2 else image.shape, image, how)
    if how.spacing is None:
        return lengths
    targets = [1.0] * (3 - len(how.spacing)) + how.spacing
    if how.unit == "px":
        steps: tuple[float, ...] = (1.0, 1.0, 1.0)
    else:
        spacing = image.spacing or tuple(how.assumed_spacing or how.spacing)
        spacing = spacing if len(spacing) == image.dimensions else spacing[-image.dimensions :]
        steps = _laid((targets[0], *spacing), image, how) if image.dimensions == 2 else _laid(spacing, image, how)
    shape = []
    for length, step, target in zip(lengths, steps, targets, strict=True):
        keep = abs(step / target - 1) < AS_GOOD_AS_THE_SAME
        shape.append(length if keep else max(1, round(length * step / target)))
    return (shape[0] if how.whole and image.dimensions == 3 else lengths[0], shape[1], shape[2])


def resample(array: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Resample float (C, H, W) or (C, D, H, W) linearly to the spatial `shape`, antialiased where an axis shrinks."""
    if tuple(array.shape[1:]) == tuple(shape):
        return array
    if array.ndim == 3:
        return F.interpolate(array[None], shape, mode="bilinear", antialias=True)[0]
    channels, depth = array.shape[:2]
    in_plane = F.interpolate(array.flatten(0, 1)[None], shape[1:], mode="bilinear", antialias=True)[0]
    if depth == shape[0]:
        return in_plane.reshape(channels, depth, *shape[1:])
    columns = in_plane.reshape(1, channels, depth, shape[1] * shape[2])
    whole = F.interpolate(columns, (shape[0], shape[1] * shape[2]), mode="bilinear", antialias=True)
    return whole.reshape(channels, *shape)


def labels_to_slices(labels: NDArray[Any], image: Image, slice_axis: int) -> NDArray[Any]:
    """Order the axes of a label map as `preprocess` orders those of its image; returns a view.

    (H, W) → (1, H, W); (D, H, W) → (slices, …).
    """
    if labels.ndim == 2:
        return labels[None]
    return np.moveaxis(to_screen(labels, oriented=is_oriented(image)), slice_axis, 0)


def slices_to_labels(slices: NDArray[Any], image: Image, slice_axis: int) -> NDArray[Any]:
    """The inverse of `labels_to_slices`."""
    if image.dimensions == 2:
        picture: NDArray[Any] = slices[0]
        return picture
    volume: NDArray[Any] = np.moveaxis(slices, 0, slice_axis)
    return to_screen(volume, oriented=is_oriented(image))


def _laid(per_axis: tuple[Any, ...], image: Image, how: Preprocessing) -> tuple[Any, Any, Any]:
    """Reorder one value per axis (z, y, x) into the order in which the network sees the axes."""
    if image.dimensions == 2:
        return per_axis[0], per_axis[1], per_axis[2]
    in_plane = [item for axis, item in enumerate(per_axis) if axis != how.slice_axis]
    return per_axis[how.slice_axis], in_plane[0], in_plane[1]


def _resample_labels(labels: NDArray[np.uint8], shape: tuple[int, ...], *, along_slices: bool) -> NDArray[np.uint8]:
    """Resample (S, H, W) to `shape`: each class as a share of every pixel, and the largest share wins."""
    largest_share, classes = torch.full(shape, -1.0), torch.zeros(shape, dtype=torch.uint8)
    for index in np.unique(labels):
        mask = torch.from_numpy((labels == index).astype(np.float32))
        share = resample(mask[None], shape)[0] if along_slices else resample(mask, shape[1:])
        better = share > largest_share
        largest_share[better], classes[better] = share[better], int(index)
    return classes.numpy()


def _with_channels(array: NDArray[Any], channels: int) -> NDArray[Any]:
    if len(array) == channels:
        return array
    if not {len(array), channels} <= GREY_OR_COLOUR:
        raise ImageError(
            "other_channels",
            f"The image has {len(array)} channels, and the model was trained on {channels}.",
            "Give an image with the same channels, in the same order.",
        )
    if channels == 3:
        return np.repeat(array[:1], 3, axis=0)
    # The brightness of a colour by ITU-R BT.601.
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    return np.tensordot(weights, array.astype(np.float32), axes=1)[None]


def _normalise(channel: NDArray[Any], how: Preprocessing) -> NDArray[np.float32]:
    if how.normalisation == "ct":
        scaled = np.clip(channel, how.low, how.high).astype(np.float32)
        fixed: NDArray[np.float32] = (scaled - np.float32(how.mean)) / np.float32(max(how.std, 1e-6))
        return fixed
    corner = channel.reshape(-1)[0]
    body = body_of(channel, corner) if how.without_air else channel.reshape(-1)
    low, high = _range(body)
    # A body of a single value would be clipped to it, and the ground with it, so nothing would be left to see.
    if low == high and body.size < channel.size:
        body = channel.reshape(-1)
        low, high = _range(body)
    if low == high:
        low, high = body.min(), body.max()
    of_body = np.clip(body, low, high).astype(np.float32)
    # Mean and standard deviation still come from the narrow range, which rare extreme values do not disturb.
    if how.wide:
        low, high = np.percentile(body, WIDE)
    clipped = np.clip(channel, low, high).astype(np.float32)
    own: NDArray[np.float32] = (clipped - of_body.mean()) / np.float32(max(float(of_body.std()), 1e-6))
    return own


def _range(values: NDArray[Any]) -> tuple[Any, Any]:
    low, high = np.percentile(values[:: max(1, values.size // 1_000_000)], CLIPPED)
    return low, high
