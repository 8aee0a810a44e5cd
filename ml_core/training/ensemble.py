"""Trains the networks of one training one after the other: a single network, or one for each fold and seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ml_core.cases.store import StoredCase
from ml_core.dataset.case import Case
from ml_core.dataset.splits import Split
from ml_core.errors import is_out_of_memory
from ml_core.planning.budget import Budget, Deadline, Stage
from ml_core.planning.plan import Plan
from ml_core.training.events import CurvePoint, EpochEnded, Event, OnEvent, Progress, Reporter, Started
from ml_core.training.preflight import lower_batch
from ml_core.training.refinement import Member
from ml_core.training.state import read_state
from ml_core.training.trainer import Fitted, fit


@dataclass(frozen=True)
class Trained:
    """The trained networks, with their best weights."""

    plan: Plan
    """The plan that was followed in the end; its batch is smaller than planned if memory ran out."""
    members: list[Member]
    """One for each network; fewer if somebody stopped the training."""
    epochs: int
    """The epochs of all networks together."""
    best_epoch: int
    """The epoch of the first network's best weights."""
    stopped: bool
    """Whether somebody stopped the training."""


@dataclass(frozen=True)
class Part:
    """What one of the networks is trained on."""

    number: int
    """The number of this network, from 0."""
    count: int
    """How many networks there are."""
    seed: int
    """The seed of its random numbers."""
    train: list[StoredCase]
    """The cases to learn from."""
    val: list[StoredCase]
    """The cases to choose the best weights on."""
    val_cases: list[Case]
    """All validation cases as files, including those that could not be decoded in time."""
    folder: Path
    """The folder for its checkpoints."""


def parts_of(
    plan: Plan, cases: list[Case], splits: list[Split], stored: dict[int, StoredCase], folder: Path
) -> list[Part]:
    """Make a part for each split and seed.

    stored: decoded cases by their position in `cases`. folder: the folder of the whole training.
    """
    pairs = [(split, plan.seed + number) for split in splits for number in range(plan.seeds)]
    parts = []
    for number, (split, seed) in enumerate(pairs):
        train, val = ([stored[index] for index in side if index in stored] for side in (split.train, split.val))
        place = folder if len(pairs) == 1 else folder / f"member_{number}"
        parts.append(Part(number, len(pairs), seed, train, val, [cases[index] for index in split.val], place))
    return parts


def train_networks(
    plan: Plan, parts: list[Part], budget: Budget, reporter: Reporter, warm_start: dict[str, Tensor] | None
) -> Trained:
    """Train one network after the other; each gets an equal share of the time that is left when its turn comes."""
    end, short = budget.deadline_of(Stage.TRAINING), budget.shortage()
    reporter.warn(*[short] if short else [])
    members: list[Member] = []
    all_fitted: list[Fitted] = []
    for part in parts:
        part.folder.mkdir(exist_ok=True)
        # PyTorch keeps compiled code, so only the first network has to wait for it.
        if plan.torch_compile == "on" and part.number == 0:
            reporter.progress(Stage.COMPILING, 0, 1, epochs=plan.epochs)
        deadline = end.part(1 / (part.count - part.number))
        before = sum(fitted.epochs for fitted in all_fitted)
        plan, fitted = train_part(plan, part, before, deadline, reporter, warm_start)
        all_fitted.append(fitted)
        reporter.warn(*fitted.warnings)
        if fitted.network is not None:
            members.append(Member(fitted.network, part.val_cases))
        if fitted.stopped:
            break
    epochs = sum(fitted.epochs for fitted in all_fitted)
    return Trained(plan, members, epochs, all_fitted[0].best_epoch, all_fitted[-1].stopped)


def train_part(
    plan: Plan, part: Part, before: int, deadline: Deadline, reporter: Reporter, warm_start: dict[str, Tensor] | None
) -> tuple[Plan, Fitted]:
    """Train one network; if memory runs out, go on from its checkpoint with half the batch.

    before: the epochs of the networks before this one. The returned plan has the batch that fitted.
    """
    # The time of an earlier attempt counts as used.
    deadline = deadline.earlier(read_state(part.folder / "latest.safetensors").seconds)
    on_event = as_part(reporter.tell, part, before)
    while True:
        try:
            return plan, fit(
                plan.with_seed(part.seed),
                part.train,
                part.val,
                part.folder,
                on_event=on_event,
                should_stop=reporter.should_stop,
                deadline=deadline,
                warm_start=warm_start,
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or plan.batch_size <= 2:
                raise
        # This stands outside the except block because the exception refers to the tensors that filled the memory.
        batch = max(2, plan.batch_size // 2)
        text = f"Memory ran out with a batch of {plan.batch_size}, so it goes on with {batch}."
        plan = lower_batch(plan, batch, text)
        reporter.note(text)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def as_part(tell: OnEvent, part: Part, before: int) -> OnEvent:
    """Wrap `tell` so that the events of one network read as events of the whole training.

    Epochs are counted on from `before`, and a finished network is only a part of the whole progress.
    """
    if part.count == 1:
        return tell

    def shifted(point: CurvePoint) -> CurvePoint:
        return replace(point, epoch=point.epoch + before)

    def tell_part(event: Event) -> None:
        match event:
            case Started():
                tell(Started(event.epoch + before, [shifted(point) for point in event.curve]))
            case EpochEnded():
                tell(EpochEnded(shifted(event.point)))
            case Progress():
                tell(_progress_of_part(event, part, before))
            case _:
                tell(event)

    return tell_part


def _progress_of_part(event: Progress, part: Part, before: int) -> Progress:
    return replace(
        event,
        fraction=(part.number + event.fraction) / part.count,
        # The remaining networks are expected to take as long as this one.
        eta_seconds=(event.eta_seconds or 0.0) * (part.count - part.number),
        epoch=event.epoch + before,
        epochs=(event.epochs or 0) + before,
        network=part.number + 1,
        networks=part.count,
    )
