"""Who may take how much of the time of a training: preparing, training, refining and evaluating, by one clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from ml_core.documents import Document
from ml_core.planning.plan import Plan

DEFAULT_SECONDS = 300
"""The budget of a training that was asked for neither a budget nor a number of epochs."""

# Shares of the budget.
PREPARING_SHARE = 0.25
"""When this share is over, the cases that are decoded by then have to do."""
MIN_PREPARING_SHARE = 0.1
"""Decoding may take this share from its own start on, however late that comes."""
MIN_TRAINING_SHARE = 0.3
"""Of the time that is left when training starts, this share at least goes into steps, however long the evaluation takes."""
REFINING_SHARE = 0.05
"""Measuring what helps on the validation cases takes this share at most; so do mirrored copies in the evaluation."""
EVALUATING_SHARE = 0.25
"""The evaluation takes this share at most: of very many held-out cases some are evaluated, spread evenly."""
LATEST_SHARE = 1.07
"""No evaluation of a further case that would end later than this; the budget is what a user waits for, give or take a little."""

# Shares of something else.
COMPARING_SHARE, MIRRORING_SHARE = 0.25, 0.9
"""Of the time of refining, that are over when runtimes are compared, and when mirroring is measured."""
VALIDATION_SHARE = 0.06
"""Of an epoch's time that its validation takes at most, unless the epoch would get too long."""
CHECKPOINT_SHARE = 0.03
"""Of the training's time that goes into writing checkpoints at most."""

# Reserves, and what the estimate rests on.
PACKAGING_SECONDS = 3.0
"""For each network, to convert it, and to write and check its part of the package."""
REFINING_PASSES = 20
"""Over the validation cases: mirrored copies, comparisons of runtimes, post-processing."""
MIRRORED_COPIES = 8
"""Of an image, where mirrored ones are predicted too."""
TRAINING_COST = 3
"""How many times as long as in validation a pixel takes in training, where something goes backwards too."""
MIN_STEPS, MAX_STEPS = 8, 250
"""Of an epoch."""

Clock = Callable[[], float]
"""Seconds since some moment, such as time.monotonic."""


class Stage(StrEnum):
    """What a training does, one after the other."""

    PREPARING = "preparing"
    COMPILING = "compiling"
    TRAINING = "training"
    REFINING = "refining"
    EVALUATING = "evaluating"


@dataclass(frozen=True)
class Deadline:
    """When something has to be over."""

    at: float | None = None
    """By the clock; None where it may take as long as it takes."""
    clock: Clock = time.monotonic
    """The clock of the budget."""

    def left(self) -> float:
        """Seconds; infinity where there is no deadline."""
        return math.inf if self.at is None else self.at - self.clock()

    def is_over(self) -> bool:
        return self.left() <= 0

    def part(self, share: float) -> Deadline:
        """The end of the first `share` (0 to 1) of the time that is left now."""
        return self if self.at is None else Deadline(self.clock() + share * self.left(), self.clock)

    def earlier(self, seconds: float) -> Deadline:
        return self if self.at is None else Deadline(self.at - seconds, self.clock)


NO_DEADLINE = Deadline()


@dataclass(frozen=True)
class Measured:
    """What one real step and one real prediction took on this machine."""

    seconds_a_step: float
    """Of one network."""
    seconds_a_case: float
    """To predict one held-out case with one network."""
    seconds_to_score: float
    """To compute the metrics of that case."""
    peak_memory: int
    """Bytes of the process, or of the GPU's memory."""


@dataclass(frozen=True)
class Work:
    """How much there is to do."""

    networks: int
    """That are trained one after the other, and answer together."""
    steps: int
    """Of an epoch."""
    validation_pixels: int
    """Pixels or voxels that the validation after an epoch looks at."""
    validation_cases: int
    """Cases that the best weights of one network are chosen on."""
    held_out_cases: int
    """Cases that the final numbers are of."""


@dataclass(frozen=True)
class Estimate(Document):
    """What a training will take, from what was measured before its first step."""

    seconds_a_step: float
    """Of one network."""
    images_per_second: float
    """Patches learnt from, without the validation."""
    seconds_a_case: float
    """To predict one held-out case with one network."""
    seconds_to_score: float
    """To compute the metrics of that case."""
    reserve_seconds: float
    """What the work after the last step will take."""
    refining_seconds: float
    """How much of it may go into measuring what helps on the validation cases."""
    mirroring: bool
    """Whether mirrored copies would fit into the evaluation."""
    peak_memory: int
    """Bytes of the process, or of the GPU's memory."""
    epochs: int
    """The epochs of each network: those asked for, or as many as fit."""
    seconds: float
    """Of the whole training from its first step on, the budget at most."""


@dataclass(frozen=True)
class Budget:
    """The time of one training. Its steps ask for a deadline where their turn comes."""

    seconds: float | None
    """How long the training may take from `begun` on; None where the epochs say when it ends."""
    begun: float
    """By the clock: when the user's wait began."""
    clock: Clock = time.monotonic
    """All times of a training are by this clock."""
    estimate: Estimate | None = None
    """What the training and the work after it will take, once it is measured."""

    def used(self) -> float:
        """Seconds so far."""
        return self.clock() - self.begun

    def left(self) -> float:
        """Seconds until the budget is over; infinity where there is none."""
        return math.inf if self.seconds is None else self.seconds - self.used()

    def deadline_of(self, stage: Stage) -> Deadline:
        """When `stage`, which begins now, has to be over. Training and refining need the estimate."""
        if stage == Stage.REFINING:
            return Deadline(self.clock() + self._estimated().refining_seconds, self.clock)
        if self.seconds is None:
            return Deadline(None, self.clock)
        if stage == Stage.PREPARING:
            usual, least = self.begun + PREPARING_SHARE * self.seconds, MIN_PREPARING_SHARE * self.seconds
            return Deadline(max(usual, self.clock() + least), self.clock)
        if stage == Stage.EVALUATING:
            return Deadline(self.begun + LATEST_SHARE * self.seconds, self.clock)
        return Deadline(self.clock() + max(self._least_training(), self._free_for_training()), self.clock)

    def shortage(self) -> str | None:
        """A sentence where training, which begins now, gets little time or takes it from what comes after; None where it does not."""
        if self.seconds is None or self._free_for_training() >= self._least_training():
            return None
        return (
            f"A time budget of {self.seconds:g} s is short for this data on this machine: preparing took {self.used():.0f} s and the "
            f"evaluation takes about {self._estimated().reserve_seconds:.0f} s, so the training ended late and learnt little. Allow "
            "more time."
        )

    def _free_for_training(self) -> float:
        return self.left() - self._estimated().reserve_seconds

    def _least_training(self) -> float:
        assert self.seconds is not None
        return MIN_TRAINING_SHARE * max(self.left(), self.seconds / 10)

    def _estimated(self) -> Estimate:
        assert self.estimate is not None, "the estimate is made before the training starts"
        return self.estimate


def make_estimate(plan: Plan, measured: Measured, work: Work) -> Estimate:
    """What `plan` will take on this machine, and what has to be kept for the work after its last step."""
    budget, step = plan.time_budget_seconds or math.inf, measured.seconds_a_step
    networks, n_test = work.networks, work.held_out_cases
    refining = min(
        networks * work.validation_cases * measured.seconds_a_case * REFINING_PASSES, REFINING_SHARE * budget
    )
    a_case = networks * measured.seconds_a_case + measured.seconds_to_score
    once = min(n_test * a_case, max(a_case, EVALUATING_SHARE * budget))
    mirrored = n_test * (MIRRORED_COPIES * networks * measured.seconds_a_case + measured.seconds_to_score)
    mirroring = plan.test_time_augmentation == "on" or (
        plan.test_time_augmentation == "measured" and mirrored < REFINING_SHARE * budget
    )
    # The last validation begins when the time for steps is over.
    validation = step / TRAINING_COST * work.validation_pixels / (plan.batch_size * math.prod(plan.patch))
    reserve = (mirrored if mirroring else once) + refining + networks * (PACKAGING_SECONDS + validation)
    in_all = networks * work.steps * plan.epochs * step + reserve if plan.epochs else math.inf
    return Estimate(
        seconds_a_step=round(step, 4),
        images_per_second=round(plan.batch_size / step, 2),
        seconds_a_case=round(measured.seconds_a_case, 3),
        seconds_to_score=round(measured.seconds_to_score, 3),
        reserve_seconds=round(reserve, 1),
        refining_seconds=round(refining, 1),
        mirroring=mirroring,
        peak_memory=measured.peak_memory,
        epochs=plan.epochs or max(1, int((budget - reserve) / step / work.steps / networks)),
        seconds=round(min(in_all, budget), 1),
    )


def steps_of_an_epoch(units: int, validation_pixels: int, plan: Plan) -> int:
    """About one pass over the data (`units` patches), and so many steps that the validation after them costs little beside them."""
    a_pass = math.ceil(units / plan.batch_size)
    worth_validating = validation_pixels / TRAINING_COST / VALIDATION_SHARE / (plan.batch_size * math.prod(plan.patch))
    return min(max(a_pass, math.ceil(worth_validating), MIN_STEPS), MAX_STEPS)


class Pace:
    """How far the training of one network is: by its epochs or by its time, whichever is further.

    `done` is in epochs (3.5: half of the fourth is over): a batch that had to be lowered on the way changes how many steps an epoch has.
    """

    def __init__(self, plan: Plan, deadline: Deadline, *, seconds: float = 0.0, step: int = 0) -> None:
        """It goes on now from `step`, after `seconds` of training that an earlier attempt may have taken."""
        self.plan, self.deadline = plan, deadline
        self._step, self._before, self._begun = step, seconds, deadline.clock()
        self._allowed = seconds + deadline.left()
        self._seconds_a_step = 0.0

    def seconds(self) -> float:
        """Of training so far, with those of an earlier attempt."""
        return self._before + self._elapsed()

    def measure(self, step: int) -> None:
        """`step` steps are over."""
        self._seconds_a_step = self._elapsed() / max(1, step - self._step)

    def fraction(self, done: float) -> float:
        """Of the training that is over, 0 to 1."""
        by_epochs = done / self.plan.epochs if self.plan.epochs else 0.0
        return min(1.0, max(by_epochs, self.seconds() / max(1e-6, self._allowed)))

    def is_late(self) -> bool:
        """Whether there is no time for another step."""
        return self.deadline.is_over()

    def is_over(self, epoch: int) -> bool:
        """Whether the training ends after `epoch` epochs. One is always trained, since without it there is no model."""
        return (self.plan.epochs is not None and epoch >= self.plan.epochs) or (epoch > 0 and self.is_late())

    def epochs_in_all(self, done: float, steps: int) -> int:
        """The epochs asked for, or as many of `steps` steps as the time left will do at the speed so far."""
        fitting = math.inf
        if self._seconds_a_step and self.deadline.at is not None:
            fitting = math.ceil(done + self.deadline.left() / self._seconds_a_step / steps)
        epochs = min(self.plan.epochs or math.inf, fitting)
        return max(1, int(epochs)) if math.isfinite(epochs) else 1

    def seconds_left(self, done: float, epochs: int, steps: int) -> float:
        """Until the last of `epochs` epochs of `steps` steps is over, at the speed so far."""
        return max(0.0, epochs - done) * steps * self._seconds_a_step

    def _elapsed(self) -> float:
        return self.deadline.clock() - self._begun
