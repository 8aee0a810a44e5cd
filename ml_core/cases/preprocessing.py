"""From a decoded image to what a network is fed, and back. Training, validation, inference and export use these functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (everybody's name for it)
from numpy.typing import NDArray
from torch import Tensor

from ml_core.dataset.fingerprint import CLIPPED, body_of
from ml_core.io import Image, is_oriented, to_screen
from ml_core.planning.plan import Preprocessing

WIDE = (0.001, 99.999)  # percentiles, where CLIPPED would cut a class off: ten pixels of a megapixel
AS_GOOD_AS_THE_SAME = 0.02  # a grid within two percent of the wanted one is left as it is


def preprocess(image: Image, how: Preprocessing) -> NDArray[np.float32]:
    """float32 (N, C, H, W), N = 1 for a picture and the number of slices for a volume; (1, C, D, H, W) where `how.whole`.

    Oriented volumes are laid as on the screen, which is how single slices are stored: a model sees both alike. The result
    is on the network's grid (`network_shape`), linear between pixels and averaging where it gets smaller.
    """
    array = _with_channels(to_screen(image.array, oriented=is_oriented(image)), how.channels)
    scaled = np.stack([_normalise(channel, how) for channel in array])
    if image.dimensions == 2:
        laid = scaled[:, None] if how.whole else scaled[None]
    else:
        laid = np.moveaxis(scaled, how.slice_axis + 1, 1 if how.whole else 0)
    shape = network_shape(image, how)
    if how.whole:
        return np.ascontiguousarray(resample(torch.from_numpy(np.ascontiguousarray(laid)), shape).numpy()[None])
    if tuple(laid.shape[2:]) == shape[1:]:
        return np.ascontiguousarray(laid)
    resized = torch.empty(len(laid), how.channels, *shape[1:])
    for index, picture in enumerate(laid):  # one by one: a copy of the whole volume is enough
        resized[index] = resample(torch.from_numpy(np.ascontiguousarray(picture)), shape[1:])
    return resized.numpy()


def labels_to_network(labels: NDArray[np.uint8], image: Image, how: Preprocessing) -> NDArray[np.uint8]:
    """Class positions on the image's grid → uint8 (N, H, W) or (1, D, H, W) on the network's, laid like `preprocess`.

    Resampled by the class with the largest share, so that thin structures keep their width where the grid gets coarser.
    """
    laid = labels_to_slices(labels, image, how.slice_axis)
    shape = network_shape(image, how)
    if tuple(laid.shape) != shape:
        laid = _resample_labels(np.ascontiguousarray(laid), shape, along_slices=how.whole)
    return np.ascontiguousarray(laid[None] if how.whole else laid)


def network_shape(image: Image, how: Preprocessing) -> tuple[int, int, int]:
    """(slices, H, W) of the image on the network's grid; 1 slice for a picture. Slices of 2D networks are never resampled."""
    own = _laid((1, *image.shape) if image.dimensions == 2 else image.shape, image, how)
    if how.spacing is None:
        return own
    wanted = [1.0] * (3 - len(how.spacing)) + how.spacing
    if how.unit == "px":
        steps: tuple[float, ...] = (1.0, 1.0, 1.0)
    else:
        known = image.spacing or tuple(how.assumed_spacing or how.spacing)
        known = known if len(known) == image.dimensions else known[-image.dimensions :]
        steps = _laid((wanted[0], *known), image, how) if image.dimensions == 2 else _laid(known, image, how)
    shape = []
    for length, step, target in zip(own, steps, wanted, strict=True):
        keep = abs(step / target - 1) < AS_GOOD_AS_THE_SAME
        shape.append(length if keep else max(1, round(length * step / target)))
    return (shape[0] if how.whole and image.dimensions == 3 else own[0], shape[1], shape[2])


def resample(array: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Float (C, H, W) or (C, D, H, W) → the spatial `shape`: linear, with an antialiasing filter where an axis shrinks."""
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


def _laid(per_axis: tuple[Any, ...], image: Image, how: Preprocessing) -> tuple[Any, Any, Any]:
    """Numbers per axis (z, y, x) in the order in which the network sees the axes."""
    if image.dimensions == 2:
        return per_axis[0], per_axis[1], per_axis[2]
    rest = [item for axis, item in enumerate(per_axis) if axis != how.slice_axis]
    return per_axis[how.slice_axis], rest[0], rest[1]


def _resample_labels(labels: NDArray[np.uint8], shape: tuple[int, ...], *, along_slices: bool) -> NDArray[np.uint8]:
    """(S, H, W) → `shape`, class by class."""
    best, found = torch.full(shape, -1.0), torch.zeros(shape, dtype=torch.uint8)
    for index in np.unique(labels):
        mine = torch.from_numpy((labels == index).astype(np.float32))
        share = resample(mine[None], shape)[0] if along_slices else resample(mine, shape[1:])
        better = share > best
        best[better], found[better] = share[better], int(index)
    return found.numpy()


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
    corner = channel.reshape(-1)[0]
    body = body_of(channel, corner) if how.without_air else channel.reshape(-1)
    low, high = _range(body)
    if (
        low == high and body.size < channel.size
    ):  # a thing of one value on its ground: its percentiles would hide the ground
        body = channel.reshape(-1)
        low, high = _range(body)
    if low == high:
        low, high = body.min(), body.max()
    of_body = np.clip(body, low, high).astype(np.float32)
    if how.wide:  # mean and spread stay those of the common values
        low, high = np.percentile(body, WIDE)
    clipped = np.clip(channel, low, high).astype(np.float32)
    own: NDArray[np.float32] = (clipped - of_body.mean()) / np.float32(max(float(of_body.std()), 1e-6))
    return own


def _range(values: NDArray[Any]) -> tuple[Any, Any]:
    low, high = np.percentile(values[:: max(1, values.size // 1_000_000)], CLIPPED)
    return low, high
