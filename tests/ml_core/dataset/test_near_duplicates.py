"""One picture under two names is found, and different pictures are left apart."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import PIL.Image
import pytest
from scipy import ndimage

from ml_core.dataset import near_duplicates
from ml_core.dataset.near_duplicates import near_duplicate_groups, signature
from ml_core.io import Image
from ml_core.io.image import Grid

Array = np.ndarray


def as_image(array: Array) -> Image:
    """(H, W), (D, H, W) or (H, W, 3) for colour."""
    array = np.moveaxis(array, -1, 0) if array.ndim == 3 and array.shape[-1] == 3 else array[None]
    return Image(array, None, None, "raster", None, None, Grid(array.shape[1:]))


def texture(seed: int, shape: tuple[int, ...] = (150, 130)) -> Array:
    """Grey blobs of several sizes and a little noise."""
    rng = np.random.default_rng(seed)
    layers = [ndimage.gaussian_filter(rng.normal(size=shape), sigma) * sigma for sigma in (2, 5, 12)]
    found = sum(layer / layer.std() for layer in layers) + rng.normal(0, 0.1, shape)
    grey: Array = np.clip(128 + 30 * found, 0, 255).astype(np.uint8)
    return grey


def as_jpeg(picture: Array) -> Array:
    file = io.BytesIO()
    PIL.Image.fromarray(picture).save(file, "JPEG", quality=50)
    return np.asarray(PIL.Image.open(file))


def half_size(picture: Array) -> Array:
    return np.asarray(PIL.Image.fromarray(picture).resize((picture.shape[1] // 2, picture.shape[0] // 2)))


COPIES: dict[str, Callable[[Array], Array]] = {
    "copied": lambda picture: picture,
    "JPEG of quality 50": as_jpeg,
    "half the size": half_size,
    "brighter": lambda picture: np.clip(picture + 30.0, 0, 255).astype(np.uint8),
    "more contrast": lambda picture: np.clip(picture * 1.3 - 40, 0, 255).astype(np.uint8),
    "16 bit": lambda picture: picture.astype(np.uint16) * 257,
    "negative": lambda picture: picture.astype(np.float32) * 0.01 - 3,
    "noise": lambda picture: picture + np.random.default_rng(9).normal(0, 4, picture.shape).astype(np.float32),
    "mirrored": lambda picture: picture[:, ::-1],
    "turned": lambda picture: np.rot90(picture),
    "mirrored and turned": lambda picture: np.rot90(picture[::-1], 3),
}


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES.keys())
def test_the_same_picture_is_found_and_others_are_not(change: Callable[[Array], Array]) -> None:
    pictures = [texture(seed) for seed in range(12)]
    groups = near_duplicate_groups([signature(as_image(item)) for item in (*pictures, change(pictures[4]))])
    assert groups == [*range(12), 4]


def test_volumes_and_their_mirror_images() -> None:
    volumes = [texture(seed, (20, 40, 30)) for seed in range(4)]
    half = volumes[1].reshape(20, 20, 2, 15, 2).mean(axis=(2, 4))
    items = [*volumes, volumes[2][:, ::-1], half]
    assert near_duplicate_groups([signature(as_image(item)) for item in items]) == [0, 1, 2, 3, 2, 1]


def test_a_common_frame_does_not_make_different_pictures_one() -> None:
    """As in fundus photographs: the same bright disc on black, with another inside each time."""
    rows, columns = np.mgrid[:150, :150]
    disc = (rows - 75) ** 2 + (columns - 75) ** 2 < 70**2
    pictures = [np.where(disc, 100 + texture(seed, (150, 150)) // 4, 0).astype(np.uint8) for seed in range(8)]
    assert near_duplicate_groups([signature(as_image(item)) for item in pictures]) == list(range(8))


def test_colour_is_compared_in_grey() -> None:
    colour = np.stack([texture(seed) for seed in (1, 2, 3)], axis=-1)
    grey = colour.mean(axis=-1).astype(np.uint8)
    assert near_duplicate_groups([signature(as_image(item)) for item in (colour, texture(1), grey)]) == [0, 1, 0]


@pytest.mark.parametrize("value", [0, 7, 0.1])
def test_images_of_one_value_resemble_nothing(value: float) -> None:
    blank = signature(as_image(np.full((50, 70), value, np.float32)))
    assert not blank.any()
    assert near_duplicate_groups([blank, blank]) == [0, 1]


def test_a_signature_is_small_and_of_one_size() -> None:
    for shape in ((5, 900), (1, 1), (300, 300)):
        found = signature(as_image(np.random.default_rng(0).normal(size=shape).astype(np.float32)))
        assert found.dtype == np.float16
        assert found.shape == (64, 64)
    assert signature(as_image(texture(0, (3, 40, 40)))).shape == (16, 16, 16)


def test_groups_join_through_a_third_and_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "CHUNK", 3)
    seeds = [0, 1, 2, 0, 3, 4, 1, 0, 5, 0, 3]
    signatures = np.stack([signature(as_image(texture(seed))) for seed in seeds])
    assert near_duplicate_groups(signatures) == seeds
    assert near_duplicate_groups([]) == []
