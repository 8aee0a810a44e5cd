"""What a dataset is said to be, also where its structures are small."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from ml_core.dataset.fingerprint import MAX_PIXELS_OF_STRUCTURE, Fingerprint, FingerprintBuilder
from ml_core.io import Image
from ml_core.io.image import Grid

STORED: dict[str, Any] = json.loads("""{
  "n_cases": 9, "dimensions": 2, "channels": 1, "modality": "greyscale", "families": {"raster": 9},
  "pose": {"alike": 0.74, "turned": 0.64},
  "shape": {"minimum": [32, 40], "median": [32.5, 40], "maximum": [64, 40]},
  "spacing": {"minimum": [0.5, 0.5], "median": [0.5, 0.5], "maximum": [0.7, 0.5]},
  "intensity": {"low": 1.0, "high": 250.0, "minimum": 0.0, "maximum": 255.0, "mean": 90.5, "std": 40.25},
  "foreground_intensity": {"p005": 60.0, "p995": 240.0, "mean": 150.0, "std": 30.0},
  "classes": [
    {"value": 0, "pixels": 3000, "share": 0.75, "cases": 9, 
     "component_pixels": 750.0, "thickness": 40.0, "thin_part": 39.5, "clipped": 0.0},
    {"value": 255, "pixels": 1000, "share": 0.25, "cases": 8, 
     "component_pixels": 50.0, "thickness": 6.5, "thin_part": 3.25, "clipped": 0.125}
  ],
  "grouping": "patient", "mask_codes": {"#ff0000": 255}, "ignored": [254]
}""")


def volume(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Image:
    shape = array.shape
    return Image(array[None], (1.0, 1.0, 1.0), np.eye(4), "nifti", "CT", None, Grid(shape[::-1], np.eye(4)))


def test_the_form_of_a_fingerprint_is_frozen() -> None:
    read = Fingerprint.from_json(STORED)
    assert read.to_json() == STORED
    assert read.shape.median == [32.5, 40]
    assert (read.pose is not None, read.spacing is not None) == (True, True)
    assert [(item.value, item.thin_part) for item in read.classes] == [(0, 39.5), (255, 3.25)]
    volumes = {**STORED, "pose": None, "spacing": None}
    assert Fingerprint.from_json(volumes).to_json() == volumes


def test_a_fingerprint_is_read_back_as_it_was_taken() -> None:
    builder, values = FingerprintBuilder(), np.zeros((8, 32, 32), np.uint8)
    values[2:6, 8:20, 8:20] = 1
    builder.add(volume(values.astype(np.float32)), values, {0: int((values == 0).sum()), 1: int(values.sum())})
    taken = builder.result()
    assert Fingerprint.from_json(json.loads(json.dumps(taken.to_json()))) == taken
    assert set(taken.to_json()) == set(STORED)


def test_small_structures_say_what_the_foreground_looks_like() -> None:
    """Twenty voxels of a quarter million in each case: hardly one of 2,000 drawn ones hits them."""
    builder, rng = FingerprintBuilder(), np.random.default_rng(0)
    for _ in range(30):
        values = np.zeros((64, 64, 64), np.uint8)
        values[30, 30:34, 30:35] = 1
        array = np.where(values, rng.normal(100, 20, values.shape), rng.normal(-800, 50, values.shape))
        builder.add(volume(array.astype(np.float32)), values, {0: int((values == 0).sum()), 1: 20})
    found = builder.result().foreground_intensity
    assert 90 < found.mean < 110
    assert 15 < found.std < 25
    assert found.p005 < 60 < 140 < found.p995


def test_too_little_foreground_leaves_the_range_of_the_images() -> None:
    builder = FingerprintBuilder()
    values = np.zeros((8, 32, 32), np.uint8)
    values[4, 4, 4] = 1
    array = np.linspace(-1000, 1000, values.size, dtype=np.float32).reshape(values.shape)
    for _ in range(3):
        builder.add(volume(array), values, {0: values.size - 1, 1: 1})
    found = builder.result().foreground_intensity
    assert found.std > 500
    assert found.p005 < -900 < 900 < found.p995


@pytest.mark.slow
def test_structure_of_large_images_is_measured_on_few_of_them() -> None:
    builder = FingerprintBuilder()
    values = np.ones((4000, 4000), np.uint8)
    values[0, 0] = 0
    image = Image(values[None].astype(np.float32), None, None, "raster", None, None, Grid((4000, 4000), None))
    for _ in range(5):
        builder.add(image, values, {0: 1, 1: values.size - 1})
    assert builder._looked_at < MAX_PIXELS_OF_STRUCTURE + values.size
    assert builder.result().classes[1].thickness > 1000
