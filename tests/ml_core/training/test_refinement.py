"""What is added to a network is used only where it helped, or agreed, on the validation cases."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ml_core.dataset.case import Case
from ml_core.planning.budget import Budget, Clock, Estimate
from ml_core.prediction.decisions import MirroringDecision, PostprocessingDecision
from ml_core.prediction.runtimes import Serving, TorchForward
from ml_core.training.refinement import Member, refine
from tests.ml_core.training.test_trainer import draw, plan_for

BRIGHT = 1.0  # standard deviations: the drawn discs are brighter than that, their ground is not


class Threshold(nn.Module):
    """Finds the discs by their brightness; blind in one half of the image unless it is mirrored there."""

    def __init__(self, *, blind: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.blind = blind

    def forward(self, images: Tensor) -> Tensor:
        disc = (images - BRIGHT) * self.weight * 4
        if self.blind:
            half = images.shape[-1] // 2
            disc = torch.cat([disc[..., :half], disc[..., half:] * 0 - 0.02], -1)
        return torch.cat([-disc, disc], 1)


def decide(
    folder: Path, network: nn.Module, a_case: float = 0.1, clock: Clock = time.monotonic, **wanted: Any
) -> tuple[Serving, MirroringDecision, PostprocessingDecision, Member]:
    cases: list[Case] = draw(folder, 3)
    plan = plan_for(cases, **wanted)
    member = Member(network.eval(), cases)
    estimate = Estimate(0.1, 10.0, a_case, 0.1, 100.0, 60.0, True, 10**9, 5, 300.0)
    decisions = refine([member], plan, Budget(300, clock(), clock, estimate))
    assert decisions.serving
    assert decisions.mirroring
    assert decisions.postprocessing
    return decisions.serving, decisions.mirroring, decisions.postprocessing, member


def test_what_does_not_help_is_not_used_and_the_numbers_say_so(tmp_path: Path) -> None:
    serving, mirroring, _, _ = decide(tmp_path, Threshold())
    assert mirroring.used == "none"
    assert mirroring.dice
    assert mirroring.dice["flips"] == pytest.approx(mirroring.dice["none"], abs=1e-4)
    assert mirroring.cases == 3
    assert serving.dice_difference is not None
    assert serving.dice_difference < 0.001
    assert set(serving.seconds or {}) == {"torch", "openvino"}


def test_mirroring_is_used_where_it_helps_on_most_cases(tmp_path: Path) -> None:
    _, mirroring, _, _ = decide(tmp_path, Threshold(blind=True))
    assert mirroring.used in ("flips", "flips and turns")
    assert mirroring.dice
    assert mirroring.dice[mirroring.used] > mirroring.dice["none"] + 0.01


def test_a_long_conversion_takes_no_time_from_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def slow(members: list[Member], plan: Any) -> tuple[str, dict[str, float]]:
        now[0] += 100
        return "torch", {}

    monkeypatch.setattr("ml_core.training.refinement._quickest", slow)
    serving, mirroring, postprocessing, _ = decide(tmp_path, Threshold(), clock=lambda: now[0])  # 60 s
    assert [decision.cases for decision in (serving, mirroring, postprocessing)] == [3, 3, 3]


def test_the_user_s_word_goes_before_what_was_measured(tmp_path: Path) -> None:
    choices: dict[str, Any] = {"test_time_augmentation": "off", "postprocessing": "off"}
    _, mirroring, postprocessing, _ = decide(tmp_path, Threshold(blind=True), **choices)
    assert (mirroring.used, mirroring.reason) == ("none", "You chose it.")
    assert (postprocessing.used, postprocessing.reason) == (None, "You chose it.")


def test_a_converted_network_that_answers_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        def __init__(self, xml: bytes, weights: bytes, precision: str) -> None:
            pass

        def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.concatenate([batch, -batch], 1)

    monkeypatch.setattr("ml_core.training.refinement.OpenVinoForward", Wrong)
    monkeypatch.setattr("ml_core.training.refinement._quickest", lambda member, plan: ("openvino", {}))
    serving, _, _, member = decide(tmp_path, Threshold(), postprocessing="off")
    assert (serving.runtime, serving.precision) == ("torch", "fp32")
    assert (serving.dice_difference or 0.0) > 0.1
    assert member.converted is None
    assert isinstance(member.forward, TorchForward)


def test_where_one_case_takes_too_long_windows_of_it_are_compared_and_nothing_else(tmp_path: Path) -> None:
    serving, _, postprocessing, _ = decide(tmp_path, Threshold(), a_case=100.0)
    assert serving.dice_difference is not None
    assert serving.dice_difference < 0.001
    assert "24 validation windows" in serving.reason
    assert postprocessing.used is None
    assert "time budget" in postprocessing.reason
