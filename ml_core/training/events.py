"""The events of a training: what its process tells, a line of JSON each, and what the worker and the command line read.

A whole training tells PlanMade; Progress of preparing; EstimateMade; for each network Started and, between Progress, EpochEnded;
Progress of refining and evaluating; Done. Note, Stopping and Failed come where there is something to tell. Reading needs no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from ml_core.dataset.splits import StoredSplit
from ml_core.documents import Document, LeftOut, NoneAsEmpty, Number, OrNone, read
from ml_core.measures.results import Metrics
from ml_core.planning.budget import Estimate, Pace, Stage
from ml_core.planning.plan import Plan
from ml_core.prediction.decisions import Decisions

SECONDS_BETWEEN_PROGRESS = 0.5


@dataclass(frozen=True)
class PlanMade(Document):
    """What will be trained, before anything is read."""

    plan: Plan
    """Every setting, with its reason."""
    split: StoredSplit
    """Who is learnt from and who is held out, by the ids of the cases."""
    type: Literal["plan"] = "plan"


@dataclass(frozen=True)
class EstimateMade(Document):
    """What was measured before the first step."""

    estimate: Estimate
    """How long it will take, and how much memory."""
    type: Literal["estimate"] = "estimate"


@dataclass(frozen=True)
class CurvePoint(Document):
    """The numbers after one epoch. Those of the validation are of what the network sees, not of whole images."""

    epoch: int
    """The number of the epoch, from 1; over several networks it goes on counting."""
    train_loss: float
    """The mean over the steps of the epoch."""
    val_loss: Number
    """The mean over the pieces validated on."""
    val_dice: Number
    """The mean over the foreground classes; NaN where none of them is there."""
    val_iou: Number
    """The same of the intersection over union."""
    learning_rate: float
    """That of the last step."""
    seconds: float
    """Of the epoch, with its validation."""
    images_per_second: float
    """Patches learnt from, without the validation."""

    @property
    def score(self) -> tuple[float, float]:
        """Larger is better: by the Dice; without foreground, or with none found, by the loss."""
        dice = 0.0 if math.isnan(self.val_dice) else self.val_dice
        return dice, -self.val_loss if math.isfinite(self.val_loss) else -math.inf


@dataclass(frozen=True)
class Started(Document):
    """A network is about to take its first step, or to go on from a checkpoint."""

    epoch: int
    """The epochs before it; 0 for a fresh start."""
    curve: Sequence[CurvePoint]
    """The points of these epochs: who listened before an interruption may not have come to write all of them down."""
    type: Literal["start"] = "start"


@dataclass(frozen=True)
class Progress(Document):
    """How far the training is."""

    stage: Stage
    """What is going on."""
    step: int
    """Steps of the network that were taken; 0 outside of training."""
    epoch: int
    """The epoch that is under way, from 1; outside of training the epochs that are over."""
    epochs: int | None
    """Epochs in all, as far as is known."""
    fraction: float
    """Of the training that is over, 0 to 1."""
    eta_seconds: float | None
    """Until the last step; None outside of training."""
    steps: Annotated[int | None, LeftOut] = None
    """Steps of the network in all."""
    done: Annotated[int | None, LeftOut] = None
    """Things that the stage is through with, such as cases; None in training."""
    total: Annotated[int | None, LeftOut] = None
    """Such things in all."""
    prepared: Annotated[float | None, LeftOut] = None
    """Of the cases that are to be read, 0 to 1, while they are read."""
    train_loss: Annotated[float | None, LeftOut] = None
    """That of the last step, or the mean of the epoch that has just ended."""
    val_dice: Annotated[float | None, LeftOut] = None
    """Of the epoch that has just ended."""
    images_per_second: Annotated[float | None, LeftOut] = None
    """Patches learnt from in this epoch so far."""
    network: Annotated[int | None, LeftOut] = None
    """Of several networks the one that is trained, from 1."""
    networks: Annotated[int | None, LeftOut] = None
    """How many they are, where they are several."""
    type: Literal["progress"] = "progress"


@dataclass(frozen=True)
class EpochEnded(Document):
    """One more epoch was trained and validated."""

    point: CurvePoint
    """Its numbers."""
    type: Literal["epoch"] = "epoch"


@dataclass(frozen=True)
class Note(Document):
    """Something that the reader should know now. It comes again among the warnings of `Done`."""

    text: str
    """A sentence."""
    type: Literal["note"] = "note"


@dataclass(frozen=True)
class Stopping(Document):
    """The wish to stop was heard; the best weights are being packaged."""

    type: Literal["stopping"] = "stopping"


@dataclass(frozen=True)
class Failed(Document):
    """The last event of a training that gives no model."""

    code: str
    """A stable word for programs."""
    reason: str
    """A sentence about what is wrong."""
    cure: str
    """A sentence about what to do."""
    type: Literal["error"] = "error"


@dataclass(frozen=True)
class Done(Document):
    """The last event of a training that ended in good order, and its result."""

    stopped: bool
    """Whether somebody stopped it; it can go on then."""
    package: str | None
    """The path of model.zip; None where no epoch was finished."""
    metrics: Annotated[Metrics | None, OrNone, NoneAsEmpty]
    """Of the held-out cases; None ({}) where it was stopped before."""
    decisions: Decisions
    """What was measured on the validation cases, and what came of it."""
    warnings: list[str]
    """Sentences that a reader of the numbers should know."""
    type: Literal["done"] = "done"


Event = PlanMade | EstimateMade | Started | Progress | EpochEnded | Note | Stopping | Failed | Done
OnEvent = Callable[[Event], None]
_ANY: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


def to_line(event: Event) -> str:
    """JSON, as `read_event` takes it."""
    return json.dumps(event.to_json())


def read_event(line: str) -> Event:
    """The inverse of `to_line`. Raises ValueError for any other line."""
    return read(_ANY, json.loads(line))


def without_type(event: Event) -> dict[str, Any]:
    """The event's JSON as a row keeps it, whose column says what it is."""
    return {name: value for name, value in event.to_json().items() if name != "type"}


class StoppedError(Exception):
    """Somebody wants the training to end, and it has nothing yet that would have to be finished first."""


class Reporter:
    """Tells what a training does, hears whether somebody wants it to end, and keeps what its result will warn of."""

    def __init__(self, on_event: OnEvent, should_stop: Callable[[], bool], warnings: Sequence[str] = ()) -> None:
        self.tell, self.should_stop, self.warnings = on_event, should_stop, list(warnings)

    def warn(self, *texts: str) -> None:
        """What the reader of the result should know, each sentence once."""
        self.warnings += [text for text in texts if text not in self.warnings]

    def note(self, text: str) -> None:
        """What the reader should know now, and later again."""
        self.warn(text)
        self.tell(Note(text))

    def progress(self, stage: Stage, done: int, total: int, *, epoch: int = 0, epochs: int | None = None) -> None:
        """How far a stage other than training is. Raises StoppedError where somebody wants an end."""
        if self.should_stop():
            raise StoppedError
        preparing = stage == Stage.PREPARING
        fraction = 0.0 if stage in (Stage.PREPARING, Stage.COMPILING) else 1.0
        prepared = done / total if preparing else None
        self.tell(Progress(stage, 0, epoch, epochs, fraction, None, done=done, total=total, prepared=prepared))


class NetworkReport:
    """Tells of the training of one network: after every epoch, and twice a second how far it is."""

    def __init__(self, on_event: OnEvent, pace: Pace, steps: int) -> None:
        """`steps`: of an epoch."""
        self.on_event, self.pace, self.steps = on_event, pace, steps
        self._last = -math.inf

    def is_due(self) -> bool:
        """Whether there was no progress for a while; then there has to be some now."""
        due = self.pace.seconds() - self._last > SECONDS_BETWEEN_PROGRESS
        if due:
            self._last = self.pace.seconds()
        return due

    def epoch(self, point: CurvePoint) -> None:
        """One more epoch is over."""
        self.on_event(EpochEnded(point))
        self.progress(point.epoch, point.epoch, point.train_loss, point.images_per_second, point.val_dice)

    def progress(
        self, epoch: int, done: float, train_loss: float, images_per_second: float, val_dice: float | None = None
    ) -> None:
        """`epoch`: epochs that are over; `done`: the same with the part of the next one that is."""
        epochs = max(self.pace.epochs_in_all(done, self.steps), epoch)
        progress = Progress(
            stage=Stage.TRAINING,
            step=round(done * self.steps),
            steps=epochs * self.steps,
            epoch=min(epoch + 1, epochs),
            epochs=epochs,
            fraction=self.pace.fraction(done),
            eta_seconds=round(self.pace.seconds_left(done, epochs, self.steps), 1),
            train_loss=train_loss,
            val_dice=val_dice,
            images_per_second=images_per_second,
        )
        self.on_event(progress)
