"""The state of a training in one safetensors file: no pickle, and either whole or not there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ml_core.errors import TrainingError, is_full_disk

SECONDS_UNTIL_ANOTHER_TRY = 10.0
SHARE = 0.03  # of the time, at most, goes into writing checkpoints
BYTES_A_SECOND = (
    400 * 2**20
)  # as a common disk writes and syncs them: nothing is known yet about this one before the first checkpoint


def save_weights(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and JSON facts so that a reader sees the old file or the new one, never half of it."""
    part = path.with_name(f".{path.name}.part")
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(whole, part, metadata={"facts": json.dumps(facts)})
        with part.open("rb") as written:
            os.fsync(written)  # the machine may lose its power, not only this process its life
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


class Keeper:
    """Writes a training's state to latest.safetensors and best.safetensors, so seldom that it costs a SHARE of the time at most.

    The best weights wait in memory meanwhile. A killed training goes on from what was written last.
    """

    def __init__(self, folder: Path) -> None:
        self.latest, self.best = folder / "latest.safetensors", folder / "best.safetensors"
        self._waiting: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self._begun = time.monotonic()
        self._next: float | None = None  # not before that

    def better(self, average: nn.Module, facts: dict[str, Any]) -> None:
        """These are the best weights so far."""
        self._waiting = {name: value.detach().cpu().clone() for name, value in average.state_dict().items()}, facts

    def keep(self, tensors: Callable[[], dict[str, Tensor]], facts: dict[str, Any], *, at_once: bool = False) -> None:
        """Write what there is, unless it was written a moment ago. The best goes first: `latest` speaks of it.

        A disk that is full is tried again later, but for the last time (`at_once`).
        """
        begun, state = time.monotonic(), tensors()
        if self._next is None:
            size = sum(tensor.nbytes for tensor in state.values())
            self._next = self._begun + size / BYTES_A_SECOND / SHARE
        if begun < self._next and not at_once:
            return
        try:
            self.keep_best()
            save_weights(self.latest, state, facts)
        except (OSError, SafetensorError) as error:
            if at_once or not is_full_disk(error):
                raise
            self._next = time.monotonic() + SECONDS_UNTIL_ANOTHER_TRY  # the training itself needs no disk
            return
        ended = time.monotonic()
        self._next = ended + (ended - begun) / SHARE

    def epoch_of_best(self) -> int:
        """The epoch after which the best weights on the disk were best; 0 where there are none."""
        return int(load_weights(self.best)[1]["epoch"]) if self.best.exists() else 0

    def keep_best(self) -> None:
        if self._waiting is not None:
            save_weights(self.best, *self._waiting)
            self._waiting = None


def seconds_spent(folder: Path) -> float:
    """How long the training took until its last checkpoint in `folder`; 0 where there is none."""
    path = folder / "latest.safetensors"
    return float(load_weights(path)[1]["seconds"]) if path.exists() else 0.0


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Raises TrainingError when the file is not one that save_weights wrote."""
    try:
        with safe_open(path, framework="pt") as source:
            facts = json.loads((source.metadata() or {}).get("facts", "{}"))
            return {name: source.get_tensor(name) for name in source.keys()}, facts  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise TrainingError(
            "damaged_checkpoint", f"The checkpoint {path.name} cannot be read: {error}", "Train again."
        ) from error


def pack(network: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Everything that the next step depends on; its random numbers come from the seed and the step's number."""
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    for index, (optimizer, parameter) in enumerate(_moved(optimizers)):
        state = optimizer.state.get(parameter, {})
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    return tensors


def unpack(
    tensors: dict[str, Tensor], network: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> None:
    """The inverse of `pack`. Raises TrainingError when the checkpoint belongs to another network."""
    try:
        network.load_state_dict(part_of(tensors, "network."))
        average.load_state_dict(part_of(tensors, "average."))
        moved = _moved(optimizers)
        for name, value in part_of(tensors, "optimizer.").items():
            index, key = name.split(".", 1)
            optimizer, own = moved[int(index)]
            # In the parameter's own layout (channels last): the fused optimizer goes through both as they lie in memory.
            if value.ndim and value.shape != own.shape:
                raise ValueError(f"{name} has the shape {tuple(value.shape)} instead of {tuple(own.shape)}.")
            laid = torch.empty_like(own).copy_(value) if value.ndim else value.to(own.device)
            optimizer.state[own][key] = laid
    except (IndexError, KeyError, RuntimeError, ValueError) as error:
        reason = f"The checkpoint does not fit the network: {str(error)[:200]}"
        raise TrainingError("damaged_checkpoint", reason, "Train again.") from error


def _moved(optimizers: list[torch.optim.Optimizer]) -> list[tuple[torch.optim.Optimizer, Tensor]]:
    """Each parameter with the optimizer that moves it."""
    return [(one, parameter) for one in optimizers for group in one.param_groups for parameter in group["params"]]


def part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
