"""The quick numbers after each epoch: bounded, on every class, and not swayed by classes that are not there."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch import Tensor, nn

from ml_core.cases.store import StoredCase, open_store
from ml_core.dataset.case import Case
from ml_core.planning.plan import Plan
from ml_core.training.losses import make_loss
from ml_core.training.validation import MAX_PIXELS, WINDOW, Validator
from tests.ml_core.training.test_trainer import draw, plan_for


class Says(nn.Module):
    """The class `index` everywhere, and the other one where the image is brightest."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.index = index

    def forward(self, images: Tensor) -> Tensor:
        other = (images == images.amax((2, 3), keepdim=True)).float() * 2
        own = torch.ones_like(other)
        parts = [own, other] if self.index == 0 else [other, own]
        return torch.cat(parts, 1) * self.weight


def stored(folder: Path, cases: list[Case], plan: Plan) -> list[StoredCase]:
    return open_store(folder / "store", cases, plan, lambda done, total: None)


def test_a_stray_pixel_of_a_class_that_is_not_there_does_not_count(tmp_path: Path) -> None:
    cases = draw(tmp_path, 3)
    PILImage.fromarray(np.zeros((48, 48), np.uint8)).save(cases[0].mask)
    plan = plan_for(cases)
    empty, disc = (Validator([case], plan, make_loss("dice_ce")) for case in stored(tmp_path, cases, plan)[:2])
    assert math.isnan(empty.validate(Says(0))[1])
    assert disc.validate(Says(1))[1] > 0.2


@pytest.mark.slow
def test_large_pictures_are_looked_at_in_parts_and_small_things_are_hit(tmp_path: Path) -> None:
    cases = []
    for index in range(4):
        image, mask = tmp_path / f"image{index}.png", tmp_path / f"mask{index}.png"
        values = np.zeros((2400, 1800), np.uint8)
        values[2300:2312, 100:112] = 255
        PILImage.fromarray(values // 2).save(image)
        PILImage.fromarray(values).save(mask)
        cases.append(Case(index + 1, f"case {index}", image, mask, key=f"large {index}"))
    plan = plan_for(cases, spacing="1 1")
    validator = Validator(stored(tmp_path, cases, plan), plan, make_loss("dice_ce"))
    assert validator.pixels() <= MAX_PIXELS
    sizes = {tuple(part.stop - part.start for part in window) for _, _, window in validator.pieces}
    assert sizes == {(WINDOW, WINDOW)}
    again = Validator(validator.cases, plan, validator.loss_of)
    assert [piece[1:] for piece in validator.pieces] == [piece[1:] for piece in again.pieces]


def test_of_many_slices_half_are_placed_on_what_is_rare(tmp_path: Path) -> None:
    """One of a hundred pictures shows the disc."""
    cases = draw(tmp_path, 100)
    for case in cases[1:]:
        PILImage.fromarray(np.zeros((48, 48), np.uint8)).save(case.mask)
    plan = plan_for(cases)
    validator = Validator(stored(tmp_path, cases, plan)[::-1], plan, make_loss("dice_ce"))
    assert not math.isnan(validator.validate(Says(0))[1])
