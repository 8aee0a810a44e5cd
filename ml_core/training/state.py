"""What a training goes on from: its own state between two epochs, or the weights of an earlier model.

The state lies in safetensors files: no pickle, and each is either whole or not there.
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

SECONDS_UNTIL_ANOTHER_TRY = 10.0  # where the disk is full
BYTES_A_SECOND = (
    400 * 2**20
)  # that a common disk writes and syncs: what is assumed of this one before the first checkpoint


@dataclass(frozen=True)
class State(Document):
    """Where a training is between two epochs, beside its tensors."""

    step: int = 0
    """Steps that were taken."""
    seconds: float = 0.0
    """How long they took, with validation; earlier attempts count."""
    best_epoch: int = 0
    """The epoch after which the weights were best; 0 before the first."""
    curve: Sequence[CurvePoint] = ()
    """A point for each epoch."""

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return len(self.curve)

    @property
    def is_best(self) -> bool:
        """Whether the weights were never better than after the last epoch."""
        return self.best_epoch == self.epoch

    def after(self, point: CurvePoint, *, steps: int, seconds: float) -> State:
        """The state after one more epoch, which `point` is of; it took `steps` steps, and the training `seconds` until now."""
        better = self.best_epoch == 0 or point.score > self.curve[self.best_epoch - 1].score
        best_epoch = point.epoch if better else self.best_epoch
        return State(self.step + steps, seconds, best_epoch, [*self.curve, point])


class Checkpoints:
    """The files that a training goes on from: latest.safetensors (everything) and best.safetensors (the best weights).

    They are written so seldom that they cost a CHECKPOINT_SHARE of the time at most; the best weights wait in memory meanwhile. A killed
    training goes on from what was written last.
    """

    def __init__(self, folder: Path, clock: Clock = time.monotonic) -> None:
        self.latest, self.best = folder / "latest.safetensors", folder / "best.safetensors"
        self._clock, self._begun = clock, clock()
        self._waiting: tuple[dict[str, Tensor], CurvePoint] | None = None
        self._next: float | None = None  # not before that

    def better(self, average: nn.Module, point: CurvePoint) -> None:
        """These are the best weights so far, after the epoch of `point`."""
        self._waiting = {name: value.detach().cpu().clone() for name, value in average.state_dict().items()}, point

    def keep(self, tensors: Callable[[], dict[str, Tensor]], state: State, *, at_once: bool = False) -> None:
        """Write what there is, unless it was written a moment ago. The best goes first: `latest` speaks of it.

        A disk that is full is tried again later, but for the last time (`at_once`).
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
            self._next = self._clock() + SECONDS_UNTIL_ANOTHER_TRY  # the training itself needs no disk
            return
        ended = self._clock()
        self._next = ended + (ended - begun) / CHECKPOINT_SHARE

    def keep_best(self) -> None:
        if self._waiting is not None:
            save_weights(self.best, *self._waiting)
            self._waiting = None

    def restore(self, network: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]) -> State:
        """Load what `latest` holds into network, average and optimizers; a fresh state where there is no checkpoint.

        Raises TrainingError when it is damaged, or belongs to another network.
        """
        state = read_state(self.latest)
        if state.epoch == 0:
            return state
        unpack(load_weights(self.latest), network, average, optimizers)
        if epoch_of(self.best) < state.best_epoch:
            # The best weights got lost (another machine could not store them), and no later ones might beat their score:
            # those of the last epoch are the best there is.
            self.better(average, state.curve[-1])
            return replace(state, best_epoch=state.epoch)
        return state


def read_state(latest: Path) -> State:
    """What a checkpoint says of its training; a fresh state where there is none. Raises TrainingError when it is damaged."""
    if not latest.exists():
        return State()
    try:
        return State.from_json(load_facts(latest))
    except ValueError as error:
        raise _damaged(latest, error) from error


def epoch_of(best: Path) -> int:
    """The epoch after which the best weights on the disk were best; 0 where there are none."""
    return int(load_facts(best)["epoch"]) if best.exists() else 0


def save_weights(path: Path, tensors: dict[str, Tensor], facts: Any) -> None:
    """Write tensors and facts (a document, or JSON) so that a reader sees the old file or the new one, never half of it."""
    part = path.with_name(f".{path.name}.part")
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(whole, part, metadata={"facts": json.dumps(to_json(facts))})
        with part.open("rb") as written:
            os.fsync(written)  # the machine may lose its power, not only this process its life
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def load_weights(path: Path) -> dict[str, Tensor]:
    """Raises TrainingError when the file is not one that save_weights wrote."""
    try:
        with safe_open(path, framework="pt") as source:
            return {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def load_facts(path: Path) -> Any:
    """The JSON that save_weights wrote beside the tensors. Raises TrainingError when the file is not one of its."""
    try:
        with safe_open(path, framework="pt") as source:
            return json.loads((source.metadata() or {}).get("facts", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> TrainingError:
    return TrainingError("damaged_checkpoint", f"The checkpoint {path.name} cannot be read: {error}", "Train again.")


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
        network.load_state_dict(_part_of(tensors, "network."))
        average.load_state_dict(_part_of(tensors, "average."))
        moved = _moved(optimizers)
        for name, value in _part_of(tensors, "optimizer.").items():
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


def _part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class WarmStart:
    """The earlier model that a training starts from."""

    weights: dict[str, Tensor]
    """Of its first network."""
    learnt_from: frozenset[str]
    """Marks (Case.mark) of the images that it learnt from."""
    caveat: str | None
    """A sentence where that makes the new numbers too good."""


def read_warm_start(path: Path, held_out: set[str]) -> WarmStart:
    """`held_out`: marks of the cases that the new model is measured on. Raises ConfigError for a package that cannot be read."""
    earlier = read_package(path)
    learnt_from, caveat = frozenset(earlier.learnt_from or ()), None
    if earlier.learnt_from is None:
        caveat = "The model to start from does not say what it learnt from: if held-out cases are among that, the numbers are too good."
    elif known := held_out & learnt_from:
        caveat = (
            f"The model to start from learnt from {len(known)} of the {len(held_out)} cases that are held out here, so the numbers "
            "are too good. Start from one that was trained with this split, or from random weights."
        )
    return WarmStart(earlier.members[0], learnt_from, caveat)


def begin_with(network: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """Load what fits; the sentences say how much did."""
    own = network.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    network.load_state_dict(fitting, strict=False)
    if len(fitting) == len(own):
        return []
    if not fitting:
        return ["Nothing of the earlier model fits this network, so the training started from random weights."]
    return [
        f"Warm start: {len(fitting)} of {len(own)} tensors of the earlier model fit; the others start from random weights."
    ]
