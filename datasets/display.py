"""Pictures of stored images and label maps for the browser: PNGs of one slice, from a small cache of decoded files."""

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


# The arrays used last, so that turning through a volume decodes it once, also one that is larger than the cache.
_arrays: LRUCache[Any, NDArray[Any]] = LRUCache(CACHE_BYTES, lambda array: min(array.nbytes, CACHE_BYTES))
_arrays_lock = threading.Lock()


@cached(_arrays, key=lambda key, sha256: ("image", sha256), lock=_arrays_lock)
def display_array(key: str, sha256: str) -> NDArray[np.uint8]:
    """The stored image ready for the screen: uint8 (D, H, W, C), D = 1 for a picture. Raises MedSegError (404, 409) without one."""
    return display_volume(read_image(_fetch(key, sha256)))


@cached(
    _arrays,
    key=lambda key, sha256, values, *, oriented: ("labels", sha256, tuple(values), oriented),
    lock=_arrays_lock,
)
def label_array(key: str, sha256: str, values: list[int], *, oriented: bool) -> NDArray[np.uint8]:
    """The stored label map as indices into `values`, laid as its image is on the screen: uint8 (D, H, W)."""
    labels = read_mask(_fetch(key, sha256)).values
    order = np.argsort(values)
    indices = order[np.clip(np.searchsorted(np.asarray(values)[order], labels), 0, len(values) - 1)].astype(np.uint8)
    return to_screen(indices if indices.ndim == 3 else indices[None], oriented=oriented)


def shown_as_volume(shape: list[int], spacing: list[float] | None) -> bool:
    """Whether a row's image is laid on the screen by the directions in the body (as ml_core.io.is_oriented of the image)."""
    return len(shape) == 3 and spacing is not None


def _fetch(key: str, sha256: str) -> Any:
    try:
        return storage.fetch(key, sha256)
    except FileNotFoundError:  # other OSErrors are outages, such as a full disk
        raise MedSegError("no_object", "The file is not in storage any more.", http_status=404) from None
    except storage.StorageCorruptError as error:
        cure = "Put it back from a backup of the storage; without one, delete what it belongs to and upload it again."
        raise MedSegError("damaged_object", f"{error} {cure}", http_status=409) from None


def slice_index(text: str | None, depth: int) -> int:
    """The query's `slice`; the middle one without it. Raises MedSegError when there is no such slice."""
    if text is None or text == "":
        return depth // 2
    index = whole_number(text, maximum=depth - 1)
    if index is None:
        raise MedSegError(
            "invalid_slice", f"There is no slice {text[:20]!r}. There are 0 to {depth - 1}.", attr="slice"
        )
    return index


def overlay(image: NDArray[np.uint8], labels: NDArray[Any], colors: list[str], opacity: float) -> NDArray[np.uint8]:
    """Colours of all classes but the first (background) over a picture: (H, W, C) and (H, W) → (H, W, 3)."""
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
    """One slice of what `load` gives (D, H, W[, C]) as a PNG. A file that cannot be shown is an error, not a crash."""
    volume = _loaded(load)
    return png_response(volume[slice_index(index, len(volume))])


def overlay_response(
    load_image: Callable[[], NDArray[np.uint8]],
    load_labels: Callable[[], NDArray[np.uint8]],
    colors: list[str],
    opacity: float,
    index: str | None,
) -> HttpResponse:
    pixels, labels = _loaded(load_image), _loaded(load_labels)
    position = slice_index(index, len(pixels))
    return png_response(overlay(pixels[position], labels[position], colors, opacity))


def _loaded(load: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    try:
        return load()
    except ImageError as error:
        raise MedSegError(error.code, str(error), http_status=409) from None
