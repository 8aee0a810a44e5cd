"""Divide the time of a training between its stages (preparing, training, refining, evaluating), by one clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from ml_core.documents import Document
from ml_core.planning.plan import Plan

DEFAULT_SECONDS = 300
"""The time budget of a training if the user gave neither a budget nor a number of epochs."""

# Shares of the budget.
PREPARING_SHARE = 0.25
"""Once this share is used, the training goes on with the cases that are decoded by then."""
MIN_PREPARING_SHARE = 0.1
"""Decoding may always take this share, even if it starts late."""
MIN_TRAINING_SHARE = 0.3
"""At least this share of the time left at the start of training goes into steps, however long the evaluation takes."""
REFINING_SHARE = 0.05
"""Refining may take at most this share. Mirrored copies are predicted in the evaluation only if they take no more."""
EVALUATING_SHARE = 0.25
"""The evaluation may take at most this share. If there are too many held-out cases, an even selection is evaluated."""
LATEST_SHARE = 1.07
"""No further case is evaluated if that would end after this share of the budget: a user is waiting for the result."""

# Shares of other times.
COMPARING_SHARE, MIRRORING_SHARE = 0.25, 0.9
"""Shares of the refining time, from its start, after which comparing runtimes and measuring mirroring must be over."""
VALIDATION_SHARE = 0.06
"""Validation takes at most this share of the time of an epoch, unless the epoch would get too long."""
CHECKPOINT_SHARE = 0.03
"""Writing checkpoints takes at most this share of the training's time."""

# Reserves, and assumptions of the estimate.
PACKAGING_SECONDS = 3.0
"""Time to convert one network, and to write and check its part of the package."""
REFINING_PASSES = 20
"""Predictions of each validation case while refining: mirrored copies, comparing runtimes, post-processing."""
MIRRORED_COPIES = 8
"""Copies of an image that are predicted with mirroring, the image itself included."""
TRAINING_COST = 3
"""Time for a pixel in training, forward and backward, divided by the time for it in validation."""
MIN_STEPS, MAX_STEPS = 8, 250
"""Limits for the steps of an epoch."""

Clock = Callable[[], float]
"""Returns the seconds since some fixed moment, such as time.monotonic."""


class Stage(StrEnum):
    """The stages of a training, in their order."""

    PREPARING = "preparing"
    COMPILING = "compiling"
    TRAINING = "training"
    REFINING = "refining"
    EVALUATING = "evaluating"


@dataclass(frozen=True)
class Deadline:
    """The moment by which a piece of work must be over."""

    at: float | None = None
    """The time of the clock; None if the work may take as long as it needs."""
    clock: Clock = time.monotonic
    """The clock of the budget."""

    def left(self) -> float:
        """Seconds until the deadline; infinity without one."""
        return math.inf if self.at is None else self.at - self.clock()

    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return self.left() <= 0

    def part(self, share: float) -> Deadline:
        """Return the deadline for the first `share` (0 to 1) of the time that is left now."""
        return self if self.at is None else Deadline(self.clock() + share * self.left(), self.clock)

    def earlier(self, seconds: float) -> Deadline:
        """Return a deadline that comes `seconds` before this one."""
        return self if self.at is None else Deadline(self.at - seconds, self.clock)


NO_DEADLINE = Deadline()


@dataclass(frozen=True)
class Measured:
    """The times and the memory that one real step and one real prediction took on this machine."""

    seconds_a_step: float
    """Time of one training step of one network."""
    seconds_a_case: float
    """Time to predict one held-out case with one network."""
    seconds_to_score: float
    """Time to compute the metrics of that case."""
    peak_memory: int
    """Highest memory in bytes: the GPU's if there is one, otherwise that of the process."""


@dataclass(frozen=True)
class Work:
    """The amount of work in a training."""

    networks: int
    """Networks that are trained one after the other and then predict together."""
    steps: int
    """Steps of an epoch."""
    validation_pixels: int
    """Pixels or voxels that are predicted in the validation after an epoch."""
    validation_cases: int
    """Cases by which the best weights of one network are chosen."""
    held_out_cases: int
    """Cases that the final metrics are computed on."""


@dataclass(frozen=True)
class Estimate(Document):
    """The estimated duration of a training, from measurements before its first step."""

    seconds_a_step: float
    """Time of one training step of one network."""
    images_per_second: float
    """Patches per second in training, without validation."""
    seconds_a_case: float
    """Time to predict one held-out case with one network."""
    seconds_to_score: float
    """Time to compute the metrics of that case."""
    reserve_seconds: float
    """Time reserved for the work after the last step."""
    refining_seconds: float
    """The part of the reserve for refining."""
    mirroring: bool
    """Whether the evaluation has time for mirrored copies."""
    peak_memory: int
    """Highest memory in bytes: the GPU's if there is one, otherwise that of the process."""
    epochs: int
    """Epochs of each network: the requested number, or as many as fit."""
    seconds: float
    """Time of the whole training from its first step on, at most the budget."""


@dataclass(frozen=True)
class Budget:
    """The time budget of one training. Each stage asks for its deadline when it begins."""

    seconds: float | None
    """How long the training may take from `begun` on; None if a number of epochs ends it."""
    begun: float
    """The time of the clock when the user began to wait."""
    clock: Clock = time.monotonic
    """The clock for all times of the training."""
    estimate: Estimate | None = None
    """The estimated duration; None until it was measured."""

    def used(self) -> float:
        """Seconds that have passed since the beginning."""
        return self.clock() - self.begun

    def left(self) -> float:
        """Seconds until the budget is used up; infinity without a budget."""
        return math.inf if self.seconds is None else self.seconds - self.used()

    def deadline_of(self, stage: Stage) -> Deadline:
        """Return the deadline of a stage that begins now. For training and refining, `estimate` must be set."""
        if stage == Stage.REFINING:
            return Deadline(self.clock() + self._estimated().refining_seconds, self.clock)
        if self.seconds is None:
            return Deadline(None, self.clock)
        if stage == Stage.PREPARING:
            usual_end, minimum = self.begun + PREPARING_SHARE * self.seconds, MIN_PREPARING_SHARE * self.seconds
            return Deadline(max(usual_end, self.clock() + minimum), self.clock)
        if stage == Stage.EVALUATING:
            return Deadline(self.begun + LATEST_SHARE * self.seconds, self.clock)
        return Deadline(self.clock() + max(self._least_training(), self._free_for_training()), self.clock)

    def shortage(self) -> str | None:
        """Return a warning if the training, which begins now, gets too little time beside the evaluation, or None."""
        if self.seconds is None or self._free_for_training() >= self._least_training():
            return None
        return (
            f"A time budget of {self.seconds:g} s is short for this data on this machine: preparing took "
            f"{self.used():.0f} s and the evaluation takes about {self._estimated().reserve_seconds:.0f} s, so the "
            "training ended late and learnt little. Allow more time."
        )

    def _free_for_training(self) -> float:
        """Seconds until the reserve for the later stages begins; negative if it has begun."""
        return self.left() - self._estimated().reserve_seconds

    def _least_training(self) -> float:
        """Seconds that the training gets at least, even at the expense of the later stages."""
        assert self.seconds is not None
        return MIN_TRAINING_SHARE * max(self.left(), self.seconds / 10)

    def _estimated(self) -> Estimate:
        assert self.estimate is not None, "the estimate is made before the training starts"
        return self.estimate


def make_estimate(plan: Plan, measured: Measured, work: Work) -> Estimate:
    """Estimate how long a plan takes on this machine, and how much time to reserve for the work after its last step."""
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
    """Choose the number of steps of an epoch: about one pass over the data, which has `units` patches.

    An epoch gets more steps if the validation after it would otherwise take more than VALIDATION_SHARE of its time.
    """
    a_pass = math.ceil(units / plan.batch_size)
    worth_validating = validation_pixels / TRAINING_COST / VALIDATION_SHARE / (plan.batch_size * math.prod(plan.patch))
    return min(max(a_pass, math.ceil(worth_validating), MIN_STEPS), MAX_STEPS)


class Pace:
    """Measures the progress of the training of one network: by its epochs or by its time, whichever is further.

    `done` counts epochs (3.5 means that half of the fourth is over). It does not count steps, because a smaller batch
    after a lack of memory changes the number of steps of an epoch.
    """

    def __init__(self, plan: Plan, deadline: Deadline, *, seconds: float = 0.0, step: int = 0) -> None:
        """Start measuring at `step`, after `seconds` of training in an earlier attempt."""
        self.plan, self.deadline = plan, deadline
        self._step, self._before, self._begun = step, seconds, deadline.clock()
        self._allowed = seconds + deadline.left()
        self._seconds_a_step = 0.0

    def seconds(self) -> float:
        """Seconds of training so far, those of an earlier attempt included."""
        return self._before + self._elapsed()

    def measure(self, step: int) -> None:
        """Measure the time of a step, now that `step` steps are over."""
        self._seconds_a_step = self._elapsed() / max(1, step - self._step)

    def fraction(self, done: float) -> float:
        """The share of the training that is over, 0 to 1."""
        by_epochs = done / self.plan.epochs if self.plan.epochs else 0.0
        return min(1.0, max(by_epochs, self.seconds() / max(1e-6, self._allowed)))

    def is_late(self) -> bool:
        """Whether there is no time for another step."""
        return self.deadline.is_over()

    def is_over(self, epoch: int) -> bool:
        """Whether the training ends after `epoch` epochs. One epoch is always trained, since a model needs it."""
        return (self.plan.epochs is not None and epoch >= self.plan.epochs) or (epoch > 0 and self.is_late())

    def epochs_in_all(self, done: float, steps: int) -> int:
        """Estimate the total number of epochs: as many as requested, or fewer if the time runs out first.

        An epoch has `steps` steps. The speed is that so far; without a measured speed or a limit the result is 1.
        """
        fitting = math.inf
        if self._seconds_a_step and self.deadline.at is not None:
            fitting = math.ceil(done + self.deadline.left() / self._seconds_a_step / steps)
        epochs = min(self.plan.epochs or math.inf, fitting)
        return max(1, int(epochs)) if math.isfinite(epochs) else 1

    def seconds_left(self, done: float, epochs: int, steps: int) -> float:
        """Estimate the seconds until the last of `epochs` epochs of `steps` steps is over, at the speed so far."""
        return max(0.0, epochs - done) * steps * self._seconds_a_step

    def _elapsed(self) -> float:
        return self.deadline.clock() - self._begun
