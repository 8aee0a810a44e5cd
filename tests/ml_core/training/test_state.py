"""Checkpoints on a disk that is full: the training goes on, and what could not be written is written later."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ml_core.errors import is_full_disk
from ml_core.training import state
from ml_core.training.state import Keeper, load_weights


def test_a_full_disk_is_tried_again_later_and_told_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, network = Keeper(tmp_path), torch.nn.Linear(2, 1)
    real, full = save_file, True

    def save(tensors: Any, path: Path, **more: Any) -> None:
        if full:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(tensors, path, **more)

    monkeypatch.setattr(state, "save_file", save)
    keeper.better(network, {"epoch": 1})
    keeper.keep(network.state_dict, {"epoch": 1})
    assert not [path for path in tmp_path.iterdir() if path.is_file()]
    with pytest.raises(OSError, match="No space"):
        keeper.keep(network.state_dict, {"epoch": 1}, at_once=True)
    full = False
    keeper.keep(network.state_dict, {"epoch": 2})
    assert not keeper.latest.exists()  # it was tried a moment ago
    keeper.keep(network.state_dict, {"epoch": 3}, at_once=True)
    assert load_weights(keeper.latest)[1] == {"epoch": 3}
    assert load_weights(keeper.best)[1] == {"epoch": 1}


def test_what_a_full_disk_is() -> None:
    assert is_full_disk(OSError(errno.ENOSPC, "x"))
    assert is_full_disk(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_full_disk(OSError(errno.EACCES, "x"))
    assert not is_full_disk(ValueError("os error 28"))


def test_the_first_checkpoint_waits_until_it_is_worth_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("ml_core.training.state.time.monotonic", lambda: now[0])
    keeper, network = Keeper(tmp_path), torch.nn.Linear(2, 1)
    seconds = 12 / state.BYTES_A_SECOND / state.SHARE  # three numbers of four bytes
    now[0] += seconds * 0.9
    keeper.keep(network.state_dict, {"epoch": 1})
    assert not keeper.latest.exists()
    now[0] += seconds * 0.2
    keeper.keep(network.state_dict, {"epoch": 2})
    assert load_weights(keeper.latest)[1] == {"epoch": 2}
