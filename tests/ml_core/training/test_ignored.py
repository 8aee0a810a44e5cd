"""Pixels that nobody labelled: they are neither learnt from nor scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ml_core
from ml_core.dataset.case import label_indices
from ml_core.measures.calibration import Calibration
from ml_core.measures.metrics import IGNORED, case_metrics
from ml_core.planning.hyperparameters import LOSSES
from ml_core.training.losses import make_loss
from tests.synthetic import draw_pair, write_png


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0]])
def test_the_loss_is_that_of_the_other_pixels(name: str, weights: list[float] | None) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 12, 8, generator=generator, requires_grad=True)
    labels = torch.randint(0, 3, (2, 12, 8), generator=generator)
    labels[:, 6:] = IGNORED
    loss = make_loss(name, class_weights=weights, ignores=True)(logits, labels)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[:, :, 6:].any()
    assert logits.grad[:, :, :6].any()
    if name != "boundary":  # which counts the border to the ignored pixels
        alone = make_loss(name, class_weights=weights)(logits[:, :, :6], labels[:, :6])
        assert float(loss) == pytest.approx(float(alone), rel=1e-5)


def test_a_batch_of_ignored_pixels_teaches_nothing() -> None:
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = make_loss("dice_ce", ignores=True)([logits, logits[..., ::2, ::2]], torch.full((1, 4, 4), IGNORED))
    loss.backward()
    assert float(loss) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_scores_and_calibration_do_not_see_them() -> None:
    reference = np.array([[0, 1, 1, IGNORED]], np.uint8)
    [background, structure] = case_metrics(reference, np.array([[0, 1, 1, 1]], np.uint8), 2, None)
    assert (background.dice, structure.dice) == (1.0, 1.0)
    probabilities = np.array([[[0.9, 0.1, 0.1, 0.1]], [[0.1, 0.9, 0.9, 0.9]]])
    seen, unseen = Calibration(), Calibration()
    seen.add(probabilities, reference)
    unseen.add(probabilities[:, :, :3], reference[:, :3])
    # As text, since NaN is not equal to itself.
    assert str(seen.result()) == str(unseen.result())


def test_values_that_are_no_class_have_their_own_position() -> None:
    values = np.array([[255, 0, -1, 7]])
    assert label_indices(values, [255, 0], "a", [7, -1]).tolist() == [[0, 1, IGNORED, IGNORED]]


@pytest.mark.slow
def test_a_training_leaves_them_out(tmp_path: Path) -> None:
    """White is background, and a band of each mask is not labelled: drawn in it, the structure counts nowhere."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for index in range(6):
        image, labels = draw_pair(rng, 64, classes=3)
        mask = labels.copy()
        mask[:8] = 255
        write_png(tmp_path / "images" / f"{index}.png", image)
        write_png(tmp_path / "masks" / f"{index}.png", mask)
    asked: dict[str, Any] = {"epochs": 1, "patch_size": 64, "batch_size": 2}
    model = ml_core.train(tmp_path / "images", tmp_path / "masks", out=tmp_path / "out", progress=False, **asked)
    assert model.plan.class_values == [0, 1, 2]
    assert model.plan.fingerprint.ignored == [255]
    assert model.metrics
    assert [row.value for row in model.metrics.per_class] == [0, 1, 2]
    again = ml_core.evaluate(model, tmp_path / "images", tmp_path / "masks", progress=False)
    assert not np.isnan(again.dice)
