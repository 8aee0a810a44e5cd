"""Checkpoints on a disk that is full: the training goes on, and what could not be written is written later."""

from __future__ import annotations

import errno
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ml_core.errors import TrainingError, is_full_disk
from ml_core.planning.budget import CHECKPOINT_SHARE
from ml_core.training import state
from ml_core.training.events import CurvePoint
from ml_core.training.state import Checkpoints, State, epoch_of, read_state, save_weights


def point(epoch: int, dice: float = 0.5) -> CurvePoint:
    return CurvePoint(epoch, 0.4, 0.5, dice, 0.3, 1e-3, 2.0, 30.0)


def state_after(epochs: int) -> State:
    found = State()
    for epoch in range(1, epochs + 1):
        found = found.after(point(epoch), steps=8, seconds=2.0 * epoch)
    return found


def test_a_full_disk_is_tried_again_later_and_told_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, network = Checkpoints(tmp_path), torch.nn.Linear(2, 1)
    real, full = save_file, True

    def save(tensors: Any, path: Path, **more: Any) -> None:
        if full:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(tensors, path, **more)

    monkeypatch.setattr(state, "save_file", save)
    checkpoints.better(network, point(1))
    checkpoints.keep(network.state_dict, state_after(1))
    assert not [path for path in tmp_path.iterdir() if path.is_file()]
    with pytest.raises(OSError, match="No space"):
        checkpoints.keep(network.state_dict, state_after(1), at_once=True)
    full = False
    checkpoints.keep(network.state_dict, state_after(2))
    assert not checkpoints.latest.exists()  # it was tried a moment ago
    checkpoints.keep(network.state_dict, state_after(3), at_once=True)
    assert read_state(checkpoints.latest).epoch == 3
    assert epoch_of(checkpoints.best) == 1


def test_what_a_full_disk_is() -> None:
    assert is_full_disk(OSError(errno.ENOSPC, "x"))
    assert is_full_disk(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_full_disk(OSError(errno.EACCES, "x"))
    assert not is_full_disk(ValueError("os error 28"))


def test_the_first_checkpoint_waits_until_it_is_worth_its_time(tmp_path: Path) -> None:
    now = [100.0]
    checkpoints, network = Checkpoints(tmp_path, lambda: now[0]), torch.nn.Linear(2, 1)
    seconds = 12 / state.BYTES_A_SECOND / CHECKPOINT_SHARE  # three numbers of four bytes
    now[0] += seconds * 0.9
    checkpoints.keep(network.state_dict, state_after(1))
    assert not checkpoints.latest.exists()
    now[0] += seconds * 0.2
    checkpoints.keep(network.state_dict, state_after(2))
    assert read_state(checkpoints.latest).epoch == 2


def test_the_best_epoch_is_that_of_the_highest_dice_and_without_one_of_the_lowest_loss() -> None:
    undefined = [replace(point(epoch, math.nan), val_loss=loss) for epoch, loss in enumerate((0.9, 0.5, 0.7), 1)]
    for points in ([point(1, 0.5), point(2, 0.6), point(3, 0.6)], undefined):
        found = State()
        for one in points:
            found = found.after(one, steps=8, seconds=1.0)
        assert (found.best_epoch, found.is_best) == (2, False)


def test_the_form_of_a_state() -> None:
    values = {
        "step": 8,
        "seconds": 2.0,
        "best_epoch": 1,
        "curve": [
            {
                "epoch": 1,
                "train_loss": 0.4,
                "val_loss": 0.5,
                "val_dice": 0.5,
                "val_iou": 0.3,
                "learning_rate": 0.001,
                "seconds": 2.0,
                "images_per_second": 30.0,
            }
        ],
    }
    assert state_after(1).to_json() == values
    assert State.from_json(values) == state_after(1)


def test_a_checkpoint_that_says_nothing_of_its_training_is_told_as_damaged(tmp_path: Path) -> None:
    latest = tmp_path / "latest.safetensors"
    save_weights(latest, torch.nn.Linear(2, 1).state_dict(), {"step": "many"})
    with pytest.raises(TrainingError, match=r"latest\.safetensors cannot be read: .*step"):
        read_state(latest)
