"""What a dataset is said to be, also where its structures are small."""

from __future__ import annotations

import numpy as np

from ml_core.dataset.fingerprint import PIXELS_OF_STRUCTURE, FingerprintBuilder
from ml_core.io import Image
from ml_core.io.image import Grid


def volume(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Image:
    shape = array.shape
    return Image(array[None], (1.0, 1.0, 1.0), np.eye(4), "nifti", "CT", None, Grid(shape[::-1], np.eye(4)))


def test_small_structures_say_what_the_foreground_looks_like() -> None:
    """Twenty voxels of a quarter million in each case: hardly one of 2,000 drawn ones hits them."""
    builder, rng = FingerprintBuilder(), np.random.default_rng(0)
    for _ in range(30):
        values = np.zeros((64, 64, 64), np.uint8)
        values[30, 30:34, 30:35] = 1
        array = np.where(values, rng.normal(100, 20, values.shape), rng.normal(-800, 50, values.shape))
        builder.add(volume(array.astype(np.float32)), values, {0: int((values == 0).sum()), 1: 20})
    found = builder.result()["foreground_intensity"]
    assert 90 < found["mean"] < 110
    assert 15 < found["std"] < 25
    assert found["p005"] < 60 < 140 < found["p995"]


def test_too_little_foreground_leaves_the_range_of_the_images() -> None:
    builder = FingerprintBuilder()
    values = np.zeros((8, 32, 32), np.uint8)
    values[4, 4, 4] = 1
    array = np.linspace(-1000, 1000, values.size, dtype=np.float32).reshape(values.shape)
    for _ in range(3):
        builder.add(volume(array), values, {0: values.size - 1, 1: 1})
    found = builder.result()["foreground_intensity"]
    assert found["std"] > 500
    assert found["p005"] < -900 < 900 < found["p995"]


def test_structure_of_large_images_is_measured_on_few_of_them() -> None:
    builder = FingerprintBuilder()
    values = np.ones((4000, 4000), np.uint8)
    values[0, 0] = 0
    image = Image(values[None].astype(np.float32), None, None, "raster", None, None, Grid((4000, 4000), None))
    for _ in range(5):
        builder.add(image, values, {0: 1, 1: values.size - 1})
    assert builder._looked_at < PIXELS_OF_STRUCTURE + values.size
    assert builder.result()["classes"][1]["thickness"] > 1000
