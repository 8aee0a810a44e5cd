"""The events of a training. Its process writes each as a line of JSON; the worker and the command line read them.

A whole training sends PlanMade; Progress while preparing; EstimateMade; for each network Started, then Progress and
EpochEnded in turn; Progress while refining and evaluating; Done. Note, Stopping and Failed are sent when there is a
reason. Reading events does not import torch.
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
    """The plan is made; no image has been decoded yet."""

    plan: Plan
    """Every setting, with its reason."""
    split: StoredSplit
    """Which cases are learnt from and which are held out, by their ids."""
    type: Literal["plan"] = "plan"


@dataclass(frozen=True)
class EstimateMade(Document):
    """A short rehearsal was measured, before the first step."""

    estimate: Estimate
    """How long the training will take, and how much memory."""
    type: Literal["estimate"] = "estimate"


@dataclass(frozen=True)
class CurvePoint(Document):
    """The numbers after one epoch. Validation numbers are measured on slices or patches, not on whole images."""

    epoch: int
    """The number of the epoch, from 1; several networks share one count."""
    train_loss: float
    """The mean loss over the steps of the epoch."""
    val_loss: Number
    """The mean loss over the validation pieces."""
    val_dice: Number
    """The mean Dice over the foreground classes; NaN if the pieces show none of them."""
    val_iou: Number
    """The mean IoU (intersection over union) over the foreground classes; NaN if the pieces show none of them."""
    learning_rate: float
    """The learning rate of the last step."""
    seconds: float
    """The time of the epoch with its validation."""
    images_per_second: float
    """Patches that were learnt from per second, without the time of the validation."""

    @property
    def score(self) -> tuple[float, float]:
        """Larger is better. Points are compared by Dice, then by loss: without foreground all Dice are equal."""
        dice = 0.0 if math.isnan(self.val_dice) else self.val_dice
        return dice, -self.val_loss if math.isfinite(self.val_loss) else -math.inf


@dataclass(frozen=True)
class Started(Document):
    """A network is about to take its first step, or to go on from a checkpoint."""

    epoch: int
    """The number of epochs that are over; 0 for a fresh start."""
    curve: Sequence[CurvePoint]
    """The points of these epochs, because the listener may have been interrupted before it stored them all."""
    type: Literal["start"] = "start"


@dataclass(frozen=True)
class Progress(Document):
    """How far the training is."""

    stage: Stage
    """The stage that is running."""
    step: int
    """Steps that the network has taken; 0 outside the training stage."""
    epoch: int
    """The running epoch, from 1; outside the training stage, the number of epochs that are over."""
    epochs: int | None
    """The expected number of epochs; None if it is not known."""
    fraction: float
    """The part of the training that is over, 0 to 1."""
    eta_seconds: float | None
    """Seconds until the last step; None outside the training stage."""
    steps: Annotated[int | None, LeftOut] = None
    """The expected number of steps of the network."""
    done: Annotated[int | None, LeftOut] = None
    """Items, such as cases, that the stage has finished; None in the training stage."""
    total: Annotated[int | None, LeftOut] = None
    """The number of these items."""
    prepared: Annotated[float | None, LeftOut] = None
    """The part of the cases that has been decoded, 0 to 1; only while cases are decoded."""
    train_loss: Annotated[float | None, LeftOut] = None
    """The loss of the last step, or the mean of the epoch that has just ended."""
    val_dice: Annotated[float | None, LeftOut] = None
    """The Dice of the epoch that has just ended."""
    images_per_second: Annotated[float | None, LeftOut] = None
    """Patches per second that were learnt from in this epoch so far."""
    network: Annotated[int | None, LeftOut] = None
    """The number of the network that is being trained, from 1; None if there is only one."""
    networks: Annotated[int | None, LeftOut] = None
    """The number of networks; None if there is only one."""
    type: Literal["progress"] = "progress"


@dataclass(frozen=True)
class EpochEnded(Document):
    """One more epoch was trained and validated."""

    point: CurvePoint
    """Its numbers."""
    type: Literal["epoch"] = "epoch"


@dataclass(frozen=True)
class Note(Document):
    """Something that the reader should know now. It is repeated among the warnings of `Done`."""

    text: str
    """A sentence."""
    type: Literal["note"] = "note"


@dataclass(frozen=True)
class Stopping(Document):
    """Somebody stopped the training, and the best weights are being packaged."""

    type: Literal["stopping"] = "stopping"


@dataclass(frozen=True)
class Failed(Document):
    """The last event of a training that failed and gives no model."""

    code: str
    """A stable word for programs."""
    reason: str
    """A sentence about what is wrong."""
    cure: str
    """A sentence about what to do."""
    type: Literal["error"] = "error"


@dataclass(frozen=True)
class Done(Document):
    """The last event of a training that did not fail: its result."""

    stopped: bool
    """Whether somebody stopped the training; it can be resumed then."""
    package: str | None
    """The path of model.zip; None if no epoch was finished."""
    metrics: Annotated[Metrics | None, OrNone, NoneAsEmpty]
    """The metrics of the held-out cases; None (in JSON {}) if the training was stopped before its evaluation."""
    decisions: Decisions
    """What was decided on the validation cases after the training."""
    warnings: list[str]
    """Sentences that a reader of the metrics should know."""
    type: Literal["done"] = "done"


Event = PlanMade | EstimateMade | Started | Progress | EpochEnded | Note | Stopping | Failed | Done
OnEvent = Callable[[Event], None]
_ANY: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


def to_line(event: Event) -> str:
    """The event as one line of JSON, which `read_event` reads."""
    return json.dumps(event.to_json())


def read_event(line: str) -> Event:
    """The inverse of `to_line`. Raises ValueError for any other line."""
    return read(_ANY, json.loads(line))


def without_type(event: Event) -> dict[str, Any]:
    """The event's JSON without its type, for a database column that holds only one type."""
    return {name: value for name, value in event.to_json().items() if name != "type"}


class StoppedError(Exception):
    """Somebody stopped the training, at a point where nothing has to be finished first."""


class Reporter:
    """Sends the events of a training, notices when somebody stops it, and collects the warnings for its result."""

    def __init__(self, on_event: OnEvent, should_stop: Callable[[], bool], warnings: Sequence[str] = ()) -> None:
        self.tell, self.should_stop, self.warnings = on_event, should_stop, list(warnings)

    def warn(self, *texts: str) -> None:
        """Add sentences to the warnings of the result, each only once."""
        self.warnings += [text for text in texts if text not in self.warnings]

    def note(self, text: str) -> None:
        """Send a sentence now, and add it to the warnings of the result."""
        self.warn(text)
        self.tell(Note(text))

    def progress(self, stage: Stage, done: int, total: int, *, epoch: int = 0, epochs: int | None = None) -> None:
        """Send the progress of a stage other than training. Raises StoppedError if somebody stopped the training."""
        if self.should_stop():
            raise StoppedError
        preparing = stage == Stage.PREPARING
        fraction = 0.0 if stage in (Stage.PREPARING, Stage.COMPILING) else 1.0
        prepared = done / total if preparing else None
        self.tell(Progress(stage, 0, epoch, epochs, fraction, None, done=done, total=total, prepared=prepared))


class NetworkReport:
    """Sends the events of one network's training: one after every epoch, and its progress twice a second."""

    def __init__(self, on_event: OnEvent, pace: Pace, steps: int) -> None:
        """`steps`: the number of steps in an epoch."""
        self.on_event, self.pace, self.steps = on_event, pace, steps
        self._last = -math.inf

    def is_due(self) -> bool:
        """Whether the last progress is SECONDS_BETWEEN_PROGRESS old. If it is, the caller must send progress now."""
        due = self.pace.seconds() - self._last > SECONDS_BETWEEN_PROGRESS
        if due:
            self._last = self.pace.seconds()
        return due

    def epoch(self, point: CurvePoint) -> None:
        """Send the numbers of an epoch that is over."""
        self.on_event(EpochEnded(point))
        self.progress(point.epoch, point.epoch, point.train_loss, point.images_per_second, point.val_dice)

    def progress(
        self, epoch: int, done: float, train_loss: float, images_per_second: float, val_dice: float | None = None
    ) -> None:
        """Send the progress. epoch: how many epochs are over; done: the same plus the finished part of the next."""
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
