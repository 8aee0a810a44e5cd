"""Who may take how much of a training's time, by a clock that the test moves."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from ml_core.planning.budget import (
    LATEST_SHARE,
    MAX_STEPS,
    MIN_PREPARING_SHARE,
    MIN_STEPS,
    MIN_TRAINING_SHARE,
    PREPARING_SHARE,
    Budget,
    Deadline,
    Estimate,
    Measured,
    Pace,
    Stage,
    Work,
    make_estimate,
    steps_of_an_epoch,
)
from tests.ml_core.planning.test_rules import plan

ESTIMATE = Estimate(0.5, 8.0, 0.1, 0.1, reserve_seconds=50.0, refining_seconds=20.0, mirroring=True, peak_memory=1,
                    epochs=9, seconds=300.0)  # fmt: skip


class FakeClock:
    """Seconds that pass when the test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_without_a_budget_only_refining_has_a_deadline() -> None:
    clock = FakeClock()
    budget = Budget(None, clock.now, clock, ESTIMATE)
    clock.now += 5
    assert (budget.used(), budget.left()) == (5, math.inf)
    assert [budget.deadline_of(stage).at for stage in Stage] == [None, None, None, clock.now + 20, None]
    assert budget.shortage() is None
    assert not budget.deadline_of(Stage.TRAINING).is_over()


def test_each_stage_gets_its_share() -> None:
    clock = FakeClock()
    budget = Budget(300, clock.now, clock, ESTIMATE)
    assert budget.deadline_of(Stage.PREPARING).at == 1000 + PREPARING_SHARE * 300
    clock.now += 60
    assert budget.left() == 240
    assert budget.deadline_of(Stage.TRAINING).at == 1000 + 300 - 50
    assert budget.shortage() is None
    assert budget.deadline_of(Stage.REFINING).at == clock.now + 20
    assert budget.deadline_of(Stage.EVALUATING).at == pytest.approx(1000 + LATEST_SHARE * 300)


def test_a_stage_that_begins_late_gets_a_least_share_and_that_is_said() -> None:
    clock = FakeClock()
    budget = Budget(300, clock.now, clock, ESTIMATE)
    clock.now += 290  # reading the folders alone took as long
    assert budget.deadline_of(Stage.PREPARING).at == pytest.approx(clock.now + MIN_PREPARING_SHARE * 300)
    assert budget.deadline_of(Stage.TRAINING).at == pytest.approx(clock.now + MIN_TRAINING_SHARE * 30)
    assert str(budget.shortage()).startswith("A time budget of 300 s is short for this data on this machine: preparing")
    assert "took 290 s and the evaluation takes about 50 s" in str(budget.shortage())
    clock.now += 100
    assert budget.deadline_of(Stage.TRAINING).left() == pytest.approx(MIN_TRAINING_SHARE * 30)


def test_a_deadline_is_shared_and_moved() -> None:
    clock = FakeClock()
    deadline = Deadline(1100.0, clock)
    assert (deadline.part(0.25).at, deadline.earlier(30).left()) == (1025.0, 70.0)
    clock.now += 40
    assert deadline.part(0.5).at == 1070.0
    clock.now += 60
    assert deadline.is_over()
    never = Deadline(clock=clock)
    assert (never.part(0.5), never.earlier(10), never.left()) == (never, never, math.inf)


def test_the_estimate_fits_the_epochs_into_what_the_evaluation_leaves() -> None:
    made = plan(time_budget_seconds=300, batch_size=4, patch_size=64, test_time_augmentation="off")
    work = Work(networks=2, steps=10, validation_pixels=3 * 4 * 64**2, validation_cases=5, held_out_cases=10)
    found = make_estimate(made, Measured(1.0, 0.1, 0.2, 123), work)
    # Refining: 5 % of the budget at most. Evaluation: 10 cases of 2 networks. Each network: 3 s, and a validation as long as a step.
    assert found.refining_seconds == 15.0
    assert found.reserve_seconds == pytest.approx(10 * (2 * 0.1 + 0.2) + 15 + 2 * (3 + 1))
    assert found.epochs == int((300 - found.reserve_seconds) / 10 / 2)
    assert (found.images_per_second, found.seconds, found.peak_memory, found.mirroring) == (4.0, 300.0, 123, False)
    asked = make_estimate(replace(made, epochs=3, time_budget_seconds=None), Measured(1.0, 0.1, 0.2, 123), work)
    assert asked.epochs == 3
    assert asked.seconds == pytest.approx(2 * 10 * 3 * 1.0 + asked.reserve_seconds)


def test_mirrored_copies_are_left_out_where_they_would_take_too_long_unless_they_are_wanted() -> None:
    work = Work(networks=1, steps=10, validation_pixels=100, validation_cases=5, held_out_cases=100)
    for choice, seconds_a_case, mirroring in (("measured", 0.01, True), ("measured", 1.0, False), ("on", 1.0, True)):
        made = plan(time_budget_seconds=300, test_time_augmentation=choice)
        assert make_estimate(made, Measured(1.0, seconds_a_case, 0.0, 1), work).mirroring == mirroring


def test_an_epoch_is_a_pass_over_the_data_but_worth_its_validation() -> None:
    made = plan(batch_size=4, patch_size=64)
    assert steps_of_an_epoch(100, 0, made) == 25
    assert steps_of_an_epoch(4, 0, made) == MIN_STEPS
    assert steps_of_an_epoch(10**6, 0, made) == MAX_STEPS
    # A validation of as many pixels as 18 batches costs 6 steps, which is 6 % of a hundred.
    assert steps_of_an_epoch(4, 18 * 4 * 64**2, made) == 100


def test_how_far_a_training_is_by_its_epochs() -> None:
    """Half the batch makes twice the steps of an epoch: how far the training is must not jump back."""
    clock = FakeClock()
    pace = Pace(plan(epochs=10), Deadline(clock=clock))
    assert (pace.fraction(5.0), pace.fraction(10.0)) == (0.5, 1.0)
    clock.now += 100
    pace.measure(500)
    for steps in (100, 200):
        assert pace.epochs_in_all(5.0, steps) == 10
        assert pace.seconds_left(5.0, 10, steps) == pytest.approx(5 * steps * 0.2)
    assert [pace.is_over(epoch) for epoch in (0, 9, 10)] == [False, False, True]


def test_how_far_a_training_is_by_the_clock_with_the_time_of_an_earlier_attempt() -> None:
    clock = FakeClock()
    pace = Pace(plan(time_budget_seconds=300), Deadline(clock.now + 60, clock), seconds=40.0, step=80)
    assert pace.fraction(3.0) == pytest.approx(0.4)
    clock.now += 10
    pace.measure(100)  # 20 steps in ten seconds
    assert pace.fraction(3.0) == pytest.approx(0.5)
    assert pace.seconds() == 50.0
    assert pace.epochs_in_all(3.0, 20) == 3 + 5  # 100 steps fit into the 50 seconds left
    assert pace.seconds_left(3.0, 8, 20) == pytest.approx(50)
    assert not pace.is_late()
    clock.now += 50
    assert pace.is_late()
    assert [pace.is_over(epoch) for epoch in (0, 1)] == [False, True]  # without an epoch there is no model
