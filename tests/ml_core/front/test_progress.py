"""What a person at a terminal or a log is told of a training."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from ml_core.front.progress import ProgressBar
from ml_core.planning.budget import Stage
from ml_core.training.events import CurvePoint, EpochEnded, Note, Progress

POINT = CurvePoint(2, 0.25, 0.5, 0.75, 0.625, 0.001, 2.5, 32.0)
TRAINING = Progress(Stage.TRAINING, 20, 3, 10, 0.25, 3661.0, steps=80)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_training_is_told_with_its_last_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar() as bar:
        bar.on_event(EpochEnded(POINT))
        bar.on_event(TRAINING)
        assert lines(capsys) == ["training: 25%, epoch 3 of 10, loss 0.250, validation Dice 0.750, 1:01:01 left"]
        bar.on_event(EpochEnded(replace(POINT, val_dice=math.nan)))
        bar.on_event(replace(TRAINING, fraction=1.0, train_loss=0.125, eta_seconds=0.0))
        assert lines(capsys) == ["training: 100%, epoch 3 of 10, loss 0.125, 0:00 left"]


def test_other_stages_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar() as bar:
        bar.on_event(Progress(Stage.PREPARING, 0, 0, None, 0.0, None, done=2, total=8, prepared=0.25))
        bar.on_event(Note("It is shown at the end."))
        bar.on_event(Progress(Stage.EVALUATING, 0, 3, 3, 1.0, None, done=1, total=2))
        assert lines(capsys) == ["preparing: 25%, 2 of 8", "evaluating: 50%, 1 of 2"]
