"""The checkpoints from which a training is resumed, and the earlier model from which it can start.

Checkpoints are safetensors files: they hold no pickle, and each is written so that it is either complete or not there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ml_core.documents import Document, to_json
from ml_core.errors import TrainingError, is_full_disk
from ml_core.planning.budget import CHECKPOINT_SHARE, Clock
from ml_core.prediction.package import read_package
from ml_core.training.events import CurvePoint

# How long the training waits to write a checkpoint again after it found the disk full.
SECONDS_UNTIL_ANOTHER_TRY = 10.0
# The speed at which a common disk writes and syncs. It is assumed until the first checkpoint has been timed.
BYTES_A_SECOND = 400 * 2**20


@dataclass(frozen=True)
class State(Document):
    """The state of a training between two epochs, without its tensors."""

    step: int = 0
    """The number of steps taken."""
    seconds: float = 0.0
    """The time they took, with validation and with earlier attempts."""
    best_epoch: int = 0
    """The epoch after which the weights were best; 0 before the first epoch has ended."""
    curve: Sequence[CurvePoint] = ()
    """A point for each epoch."""

    @property
    def epoch(self) -> int:
        """The number of epochs that are over."""
        return len(self.curve)

    @property
    def is_best(self) -> bool:
        """Whether the weights were best after the last epoch."""
        return self.best_epoch == self.epoch

    def after(self, point: CurvePoint, *, steps: int, seconds: float) -> State:
        """The state after one more epoch. point, steps: of that epoch. seconds: the time of the training so far."""
        better = self.best_epoch == 0 or point.score > self.curve[self.best_epoch - 1].score
        best_epoch = point.epoch if better else self.best_epoch
        return State(self.step + steps, seconds, best_epoch, [*self.curve, point])


class Checkpoints:
    """Writes the checkpoints of a training: latest.safetensors (everything) and best.safetensors (the best weights).

    Writing takes at most CHECKPOINT_SHARE of the time, so not every epoch is written; the best weights wait in memory
    meanwhile. A training that is killed goes on from what was written last.
    """

    def __init__(self, folder: Path, clock: Clock = time.monotonic) -> None:
        self.latest, self.best = folder / "latest.safetensors", folder / "best.safetensors"
        self._clock, self._begun = clock, clock()
        self._waiting: tuple[dict[str, Tensor], CurvePoint] | None = None
        # The earliest time of the next write; None until the size of a checkpoint is known.
        self._next: float | None = None

    def better(self, average: nn.Module, point: CurvePoint) -> None:
        """Remember the best weights so far, which are those after the epoch of `point`."""
        self._waiting = {name: value.detach().cpu().clone() for name, value in average.state_dict().items()}, point

    def keep(self, tensors: Callable[[], dict[str, Tensor]], state: State, *, at_once: bool = False) -> None:
        """Write the checkpoints, unless the last write was too recent. `at_once` always writes.

        `best` is written first, because `latest` names its epoch. If the disk is full, the next call tries again later;
        with `at_once` the error is raised.
        """
        begun, everything = self._clock(), tensors()
        if self._next is None:
            size = sum(tensor.nbytes for tensor in everything.values())
            self._next = self._begun + size / BYTES_A_SECOND / CHECKPOINT_SHARE
        if begun < self._next and not at_once:
            return
        try:
            self.keep_best()
            save_weights(self.latest, everything, state)
        except (OSError, SafetensorError) as error:
            if at_once or not is_full_disk(error):
                raise
            # The training goes on, because it needs no disk itself.
            self._next = self._clock() + SECONDS_UNTIL_ANOTHER_TRY
            return
        ended = self._clock()
        self._next = ended + (ended - begun) / CHECKPOINT_SHARE

    def keep_best(self) -> None:
        """Write the best weights, if they have not been written yet."""
        if self._waiting is not None:
            save_weights(self.best, *self._waiting)
            self._waiting = None

    def restore(self, network: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]) -> State:
        """Load `latest` into network, average and optimizers; without a checkpoint the state is a fresh one.

        Raises TrainingError if the checkpoint is damaged, or belongs to another network.
        """
        state = read_state(self.latest)
        if state.epoch == 0:
            return state
        unpack(load_weights(self.latest), network, average, optimizers)
        if epoch_of(self.best) < state.best_epoch:
            # The best weights are lost, for example because another machine could not store them. Their score must not
            # count any more, since later weights might never beat it. The weights of the last epoch take their place.
            self.better(average, state.curve[-1])
            return replace(state, best_epoch=state.epoch)
        return state


def read_state(latest: Path) -> State:
    """Read the state in a checkpoint; a fresh one if there is no file. Raises TrainingError if the file is damaged."""
    if not latest.exists():
        return State()
    try:
        return State.from_json(load_facts(latest))
    except ValueError as error:
        raise _damaged(latest, error) from error


def epoch_of(best: Path) -> int:
    """The epoch of the best weights on the disk; 0 if there are none."""
    return int(load_facts(best)["epoch"]) if best.exists() else 0


def save_weights(path: Path, tensors: dict[str, Tensor], facts: Any) -> None:
    """Write tensors and facts (a document, or JSON values). A reader sees the old file or the new one, never a half."""
    part = path.with_name(f".{path.name}.part")
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(whole, part, metadata={"facts": json.dumps(to_json(facts))})
        with part.open("rb") as written:
            # Without this, a loss of power could leave the new name with half of the content.
            os.fsync(written)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors that `save_weights` wrote. Raises TrainingError if the file is damaged."""
    try:
        with safe_open(path, framework="pt") as source:
            return {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def load_facts(path: Path) -> Any:
    """Read the facts that `save_weights` wrote, as JSON values. Raises TrainingError if the file is damaged."""
    try:
        with safe_open(path, framework="pt") as source:
            return json.loads((source.metadata() or {}).get("facts", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> TrainingError:
    return TrainingError("damaged_checkpoint", f"The checkpoint {path.name} cannot be read: {error}", "Train again.")


def pack(network: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All tensors that the next step depends on, by name. Random numbers come from the seed and the step's number."""
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    for index, (optimizer, parameter) in enumerate(_moved(optimizers)):
        state = optimizer.state.get(parameter, {})
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    return tensors


def unpack(
    tensors: dict[str, Tensor], network: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Load tensors that `pack` collected. Raises TrainingError if they belong to another network."""
    try:
        network.load_state_dict(_part_of(tensors, "network."))
        average.load_state_dict(_part_of(tensors, "average."))
        moved = _moved(optimizers)
        for name, value in _part_of(tensors, "optimizer.").items():
            index, key = name.split(".", 1)
            optimizer, parameter = moved[int(index)]
            # The fused optimizer reads state and parameter in the order of memory, so both need the same layout.
            if value.ndim and value.shape != parameter.shape:
                raise ValueError(f"{name} has the shape {tuple(value.shape)} instead of {tuple(parameter.shape)}.")
            restored = torch.empty_like(parameter).copy_(value) if value.ndim else value.to(parameter.device)
            optimizer.state[parameter][key] = restored
    except (IndexError, KeyError, RuntimeError, ValueError) as error:
        reason = f"The checkpoint does not fit the network: {str(error)[:200]}"
        raise TrainingError("damaged_checkpoint", reason, "Train again.") from error


def _moved(optimizers: list[torch.optim.Optimizer]) -> list[tuple[torch.optim.Optimizer, Tensor]]:
    """Each parameter, with the optimizer that changes it."""
    return [
        (optimizer, parameter)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]


def _part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class WarmStart:
    """The earlier model that a training starts from."""

    weights: dict[str, Tensor]
    """The weights of its first network."""
    learnt_from: frozenset[str]
    """Marks (Case.mark) of the images that it learnt from."""
    caveat: str | None
    """A warning if it learnt from held-out cases, or may have; None otherwise."""


def read_warm_start(path: Path, held_out: set[str]) -> WarmStart:
    """Read the package of an earlier model. Raises ConfigError if it cannot be read.

    held_out: marks (Case.mark) of the cases that the new model will be measured on.
    """
    earlier = read_package(path)
    learnt_from, caveat = frozenset(earlier.learnt_from or ()), None
    if earlier.learnt_from is None:
        caveat = (
            "The model to start from does not say what it learnt from. If that includes held-out cases, the numbers "
            "are too good."
        )
    elif known := held_out & learnt_from:
        caveat = (
            f"The model to start from learnt from {len(known)} of the {len(held_out)} cases that are held out here, so "
            "the numbers are too good. Start from a model that was trained with this split, or from random weights."
        )
    return WarmStart(earlier.members[0], learnt_from, caveat)


def begin_with(network: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """Load the weights that fit the network. Returns a warning if not all of its weights were loaded."""
    own = network.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    network.load_state_dict(fitting, strict=False)
    if len(fitting) == len(own):
        return []
    if not fitting:
        return ["None of the earlier model's tensors fits this network, so the training started from random weights."]
    return [
        f"Only {len(fitting)} of the network's {len(own)} tensors could be taken from the earlier model. The others "
        "start from random weights."
    ]
