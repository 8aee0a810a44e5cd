"""The networks of one training: one, or one for each fold and seed, trained one after the other, that answer together."""

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
    """The networks with their best weights."""

    plan: Plan
    """That they were trained by; with a smaller batch where memory ran out."""
    members: list[Member]
    """One for each network; fewer where somebody stopped the training."""
    epochs: int
    """Of all networks together."""
    best_epoch: int
    """Of the first network."""
    stopped: bool
    """Whether somebody stopped it."""


@dataclass(frozen=True)
class Part:
    """What one of the networks is trained on."""

    number: int
    """From 0."""
    count: int
    """How many networks there are."""
    seed: int
    """Of its random numbers."""
    train: list[StoredCase]
    """The cases to learn from."""
    val: list[StoredCase]
    """The cases to choose the best weights on."""
    val_cases: list[Case]
    """The same, and those of them that could not be decoded in time, as files."""
    folder: Path
    """It gets the checkpoints."""


def parts_of(
    plan: Plan, cases: list[Case], splits: list[Split], stored: dict[int, StoredCase], folder: Path
) -> list[Part]:
    """A part for each split and seed. stored: decoded cases by their position in `cases`. folder: of the whole training."""
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
        if plan.torch_compile == "on" and part.number == 0:  # PyTorch remembers it for the others
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
    """Train one network; where memory runs out in spite of all, go on from its checkpoint with half the batch.

    `before`: epochs of the networks before it. The plan that comes back has the batch that fitted.
    """
    # The time that an earlier attempt took counts.
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
        # Outside the except block: the error holds on to everything that filled the memory.
        batch = max(2, plan.batch_size // 2)
        text = f"Memory ran out with a batch of {plan.batch_size}, so it goes on with {batch}."
        plan = lower_batch(plan, batch, text)
        reporter.note(text)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def as_part(tell: OnEvent, part: Part, before: int) -> OnEvent:
    """The events of one of several networks: epochs go on counting after the `before` ones, and its share of the whole is a part."""
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
        eta_seconds=(event.eta_seconds or 0.0) * (part.count - part.number),  # the others will take as long
        epoch=event.epoch + before,
        epochs=(event.epochs or 0) + before,
        network=part.number + 1,
        networks=part.count,
    )
