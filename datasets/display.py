"""PNGs of single slices of stored images and label maps, from a small cache of decoded files."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from cachetools import LRUCache, cached
from django.http import HttpResponse
from numpy.typing import NDArray
from PIL import Image as PILImage

from medseg_site.shared.base.errors import MedSegError
from medseg_site.shared.base.text import whole_number
from medseg_site.shared.storage import objects as storage
from ml_core.errors import ImageError
from ml_core.io import display_volume, read_image, read_mask, to_screen

CACHE_BYTES = 512 * 2**20

# The arrays used last, so that a person who scrolls through a volume has it decoded once. An array that is larger than
# the cache counts as exactly the cache's size, so that it is kept as well.
_arrays: LRUCache[Any, NDArray[Any]] = LRUCache(CACHE_BYTES, lambda array: min(array.nbytes, CACHE_BYTES))
_arrays_lock = threading.Lock()


@cached(_arrays, key=lambda key, sha256: ("image", sha256), lock=_arrays_lock)
def display_array(key: str, sha256: str) -> NDArray[np.uint8]:
    """The stored image ready for the screen: uint8 (D, H, W, C), with D = 1 for a picture.

    Raises MedSegError when the object is missing (404) or damaged (409), and ImageError when it cannot be read.
    """
    return display_volume(read_image(_fetch(key, sha256)))


@cached(
    _arrays,
    key=lambda key, sha256, values, *, oriented, others=0: ("labels", sha256, tuple(values), oriented, others),
    lock=_arrays_lock,
)
def label_array(key: str, sha256: str, values: list[int], *, oriented: bool, others: int = 0) -> NDArray[np.uint8]:
    """The stored label map as indices into `values`, turned like its image on the screen: uint8 (D, H, W).

    `others` is the index of values that are not in `values`: 0 (background) for ignored pixels, 1 for the numbers of
    objects. Raises the same errors as display_array.
    """
    labels = read_mask(_fetch(key, sha256)).values
    order = np.argsort(values)
    places = order[np.clip(np.searchsorted(np.asarray(values)[order], labels), 0, len(values) - 1)]
    indices = np.where(np.asarray(values)[places] == labels, places, others).astype(np.uint8)
    return to_screen(indices if indices.ndim == 3 else indices[None], oriented=oriented)


def shown_as_volume(shape: list[int], spacing: list[float] | None) -> bool:
    """Whether the image is turned for the screen by its directions in the body (as ml_core.io.is_oriented says)."""
    return len(shape) == 3 and spacing is not None


def _fetch(key: str, sha256: str) -> Any:
    try:
        return storage.fetch(key, sha256)
    # Any other OSError is an outage, such as a full disk.
    except FileNotFoundError:
        raise MedSegError("no_object", "The file is not in storage any more.", http_status=404) from None
    except storage.StorageCorruptError as error:
        cure = "Put it back from a backup of the storage; without one, delete what it belongs to and upload it again."
        raise MedSegError("damaged_object", f"{error} {cure}", http_status=409) from None


def slice_index(text: str | None, depth: int) -> int:
    """The slice that `text` asks for, or the middle one without a text. Raises MedSegError when there is none."""
    if text is None or text == "":
        return depth // 2
    index = whole_number(text, maximum=depth - 1)
    if index is None:
        raise MedSegError(
            "invalid_slice", f"There is no slice {text[:20]!r}. There are 0 to {depth - 1}.", attr="slice"
        )
    return index


def overlay(image: NDArray[np.uint8], labels: NDArray[Any], colors: list[str], opacity: float) -> NDArray[np.uint8]:
    """Blend the colours of all classes but the first (background) into a picture: (H, W, C) and (H, W) → (H, W, 3).

    `labels` are indices into `colors`, which are #rrggbb. `opacity` is from 0 to 1.
    """
    table = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in colors], dtype=np.float32)
    weight = np.where(labels > 0, np.float32(opacity), np.float32(0))[..., None]
    blended = image * (1 - weight) + table[labels] * weight
    colored: NDArray[np.uint8] = np.rint(blended).astype(np.uint8)
    return colored


def png_bytes(array: NDArray[np.uint8]) -> bytes:
    """A PNG of (H, W), (H, W, 1) or (H, W, 3)."""
    if array.ndim == 3:
        array = array[..., 0] if array.shape[-1] == 1 else array
    buffer = io.BytesIO()
    PILImage.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def png_response(array: NDArray[np.uint8]) -> HttpResponse:
    response = HttpResponse(png_bytes(array), content_type="image/png")
    response["Cache-Control"] = "private, max-age=3600"
    return response


def slice_response(load: Callable[[], NDArray[np.uint8]], index: str | None) -> HttpResponse:
    """Answer with one slice of the array (D, H, W[, C]) that `load` returns, as a PNG.

    Raises MedSegError (409) when the file cannot be read, so that the user learns why.
    """
    volume = _loaded(load)
    return png_response(volume[slice_index(index, len(volume))])


def overlay_response(
    load_image: Callable[[], NDArray[np.uint8]],
    load_labels: Callable[[], NDArray[np.uint8]],
    colors: list[str],
    opacity: float,
    index: str | None,
) -> HttpResponse:
    """Answer with one slice of an image and its label map over it, as a PNG. Raises MedSegError like slice_response."""
    pixels, labels = _loaded(load_image), _loaded(load_labels)
    position = slice_index(index, len(pixels))
    return png_response(overlay(pixels[position], labels[position], colors, opacity))


def _loaded(load: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    try:
        return load()
    except ImageError as error:
        raise MedSegError(error.code, str(error), http_status=409) from None
