"""Pictures that lie in one way are told from those that lie in any, and are then not turned in a short training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ml_core.dataset.pose import Pose, PoseBuilder
from tests.ml_core.planning.test_rules import fingerprint, plan

Pictures = list[NDArray[Any]]


def bodies(count: int = 20, channels: int = 1) -> Pictures:
    """A wide body with a bright spine below its middle, never twice at quite the same place; left and right are alike."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:96, :120]
    made = []
    for _ in range(count):
        dy, dx = rng.normal(0, 3, 2)
        body = ((y - 48 - dy) / 30) ** 2 + ((x - 60 - dx) / 45) ** 2 < 1
        spine = (y - 66 - dy) ** 2 + (x - 60 - dx) ** 2 < 80
        picture = body * 90 + spine * 120 + rng.normal(0, 10, body.shape)
        made.append(np.repeat(picture[None].astype(np.float32), channels, axis=0))
    return made


def turned_at_random(pictures: Pictures) -> Pictures:
    rng = np.random.default_rng(1)
    return [np.rot90(item, int(rng.integers(4)), (1, 2))[:, :: int(rng.choice([1, -1]))] for item in pictures]


def pose_of(pictures: Pictures) -> Pose | None:
    builder = PoseBuilder()
    for item in pictures:
        builder.add(item)
    return builder.result()


def test_bodies_lie_in_one_way_until_they_are_turned() -> None:
    upright, turned = pose_of(bodies()), pose_of(turned_at_random(bodies()))
    assert upright is not None
    assert turned is not None
    assert upright.alike > 0.8
    assert upright.alike - upright.turned > 0.06
    assert abs(turned.alike - turned.turned) < 0.05
    assert (upright.lie_in_one_way, turned.lie_in_one_way) == (True, False)
    colour = pose_of(bodies(channels=3))
    assert colour is not None
    assert colour.lie_in_one_way


def test_the_numbers_are_means_over_all_pairs() -> None:
    pictures = [np.random.default_rng(number).random((1, 16, 16)) for number in range(9)]
    flat = [(item[0] - item.mean()) / np.linalg.norm(item - item.mean()) for item in pictures]
    pairs = [(one, other) for number, one in enumerate(flat) for place, other in enumerate(flat) if place != number]
    upside_down = float(np.mean([(one * other[::-1]).sum() for one, other in pairs]))
    found = pose_of(pictures)
    assert found is not None
    assert found.alike == pytest.approx(np.mean([(one * other).sum() for one, other in pairs]), abs=1e-3)
    assert found.turned >= round(upside_down, 3)


def test_what_is_alike_in_every_position_or_in_none_lies_in_no_one_way() -> None:
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:64, :64]
    cells = [(((y - 32) ** 2 + (x - 32) ** 2 < 300) * 100 + rng.normal(0, 9, x.shape))[None] for _ in range(20)]
    noise, nothing_to_see = [rng.random((1, 64, 64)) for _ in range(20)], [np.zeros((1, 40, 40))] * 20
    for pictures in (cells, noise, nothing_to_see):
        found = pose_of(pictures)
        assert found is not None
        assert not found.lie_in_one_way
    assert pose_of(bodies(5)) is None  # too few to tell
    assert pose_of([np.full((3, 30, 30), 3e38, np.float32)] * 20) is None  # sums beyond float32


def test_a_short_training_does_not_turn_them() -> None:
    like = replace(fingerprint((256, 256)), families={"raster": 8}, pose=Pose(alike=0.74, turned=0.64))
    made = plan(like=like)
    assert made.augmentation == "intensity"
    assert "by 0.74, and by 0.64 after turning" in made.reasons["augmentation"]
    assert plan(like=like, time_budget_seconds=3600).augmentation == "standard"
    assert plan(like=replace(like, pose=None)).augmentation == "light"
