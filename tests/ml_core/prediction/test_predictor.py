"""A trained model on images that differ from those that it was trained on, and packages that are damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from ml_core.dataset.fingerprint import FingerprintBuilder
from ml_core.errors import ConfigError, ImageError
from ml_core.io import Image, read_image
from ml_core.io.image import Grid
from ml_core.planning.plan import Machine
from ml_core.planning.request import TrainingRequest
from ml_core.planning.rules import make_plan
from ml_core.prediction.package import read_package
from ml_core.prediction.predictor import Predictor, input_warnings, network_of
from ml_core.prediction.runtimes import TorchForward
from tests.ml_core.training.test_trainer import CLASSES, draw, package_of, plan_for, train


@pytest.mark.slow
def test_a_large_image_goes_through_a_sliding_window(tmp_path: Path) -> None:
    cases = draw(tmp_path, 4)
    predictor = Predictor.load(package_of(train(tmp_path / "run", cases, epochs=1)))
    wide = tmp_path / "wide.png"
    PILImage.fromarray(np.zeros((800, 100), np.uint8)).save(wide)
    pieces: list[tuple[int, ...]] = []
    found = predictor.predict(read_image(wide), lambda first, probabilities: pieces.append(probabilities.shape))
    assert found.indices.shape == found.certainty.shape == (800, 100)
    assert pieces == [(1, 2, 800, 100)]


def test_a_damaged_package_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    path.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_package(path)


def test_an_image_unlike_the_training_s_is_said(tmp_path: Path) -> None:
    plan = plan_for(draw(tmp_path, 2))
    same = read_image(tmp_path / "image0.png")
    assert input_warnings(same, plan) == []
    volume = np.full((3, 4, 8, 8), 30_000, np.int16)
    strange = Image(volume, (2.0, 1.0, 1.0), np.eye(4), "nifti", "CT", None, same.grid)
    text = " ".join(input_warnings(strange, plan))
    for word in ("CT", "is a volume; the model was trained on pictures.", "colour", "values"):
        assert word in text


def test_an_image_in_other_units_is_told(tmp_path: Path) -> None:
    """An MR, a CT shown in a window or stored from 0 on: all lie within what a CT model has seen, and none is Hounsfield units."""
    rng = np.random.default_rng(0)

    def volume(low: float, high: float, modality: str | None) -> Image:
        array = rng.uniform(low, high, (1, 4, 16, 16)).astype(np.float32)
        return Image(array, (1.0, 1.0, 1.0), np.eye(4), "nifti", modality, None, Grid((16, 16, 4), np.eye(4)))

    builder, values = FingerprintBuilder(), np.zeros((4, 16, 16), np.uint8)
    values[1:3, 4:12, 4:12] = 1
    for _ in range(3):
        builder.add(volume(-1000, 2000, None), values, {0: 896, 1: 128})
    plan = make_plan(TrainingRequest(), builder.result(), CLASSES, Machine(False, 2, False))
    assert plan.normalisation == "ct"
    assert input_warnings(volume(-1000, 1500, None), plan) == []
    assert input_warnings(volume(0, 1500, "CT"), plan) == []  # a scanner says so: a part without air
    for low, high in ((0, 1500), (24, 3000)):
        [text] = input_warnings(volume(low, high, None), plan)
        assert "Hounsfield" in text
    [text] = input_warnings(volume(0, 255, None), plan)
    assert "values run from" in text


@pytest.mark.parametrize("channels", [2, 4])
def test_every_channel_reaches_the_network_and_other_numbers_of_them_are_refused(channels: int) -> None:
    rng = np.random.default_rng(0)

    def drawn(count: int) -> Image:
        array = rng.integers(0, 4096, (count, 64, 64)).astype(np.uint16)
        return Image(array, None, None, "raster", None, None, Grid((64, 64)))

    builder, values = FingerprintBuilder(), np.zeros((64, 64), np.uint8)
    values[20:40, 20:40] = 1
    image = drawn(channels)
    for _ in range(3):
        builder.add(image, values, {0: 3696, 1: 400})
    wanted = TrainingRequest.from_json({"architecture": "unet", "encoder": "mobilenet_v2", "encoder_weights": "none"})
    plan = make_plan(wanted, builder.result(), CLASSES, Machine(False, 2, False))
    assert (plan.in_channels, plan.fingerprint.modality) == (channels, "multichannel")
    predictor = Predictor([TorchForward(network_of(plan), "fp32")], plan)
    before = predictor.predict(image)
    assert before.warnings == []
    for channel in range(channels):
        array = image.array.copy()
        array[channel] = np.roll(array[channel], 20)
        changed = predictor.predict(replace(image, array=array))
        assert not np.array_equal(changed.certainty, before.certainty), channel
    for other in (1, 3, channels + 1):
        with pytest.raises(ImageError, match=f"has {other} channels, and the model was trained on {channels}"):
            predictor.predict(drawn(other))
