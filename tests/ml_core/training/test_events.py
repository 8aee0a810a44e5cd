"""The lines that a training tells, one example of each, frozen; and what becomes of the events of one of several networks."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml_core.dataset.splits import StoredSplit
from ml_core.measures.results import Metrics
from ml_core.planning.budget import Estimate, Stage
from ml_core.prediction.decisions import Decisions, MirroringDecision
from ml_core.training.ensemble import Part, as_part
from ml_core.training.events import (
    CurvePoint,
    Done,
    EpochEnded,
    EstimateMade,
    Event,
    Failed,
    Note,
    PlanMade,
    Progress,
    Reporter,
    Started,
    StoppedError,
    Stopping,
    read_event,
    to_line,
    without_type,
)
from tests.environment import REPOSITORY
from tests.ml_core.planning.test_rules import plan
from tests.pages import METRICS

POINT = CurvePoint(3, 0.25, 0.5, 0.75, 0.625, 0.001, 2.5, 32.0)
POINT_JSON = {
    "epoch": 3,
    "train_loss": 0.25,
    "val_loss": 0.5,
    "val_dice": 0.75,
    "val_iou": 0.625,
    "learning_rate": 0.001,
    "seconds": 2.5,
    "images_per_second": 32.0,
}
ESTIMATE = Estimate(0.5, 16.0, 0.25, 0.125, 30.0, 20.0, True, 1_500_000_000, 42, 300.0)
ESTIMATE_JSON = {
    "seconds_a_step": 0.5,
    "images_per_second": 16.0,
    "seconds_a_case": 0.25,
    "seconds_to_score": 0.125,
    "reserve_seconds": 30.0,
    "refining_seconds": 20.0,
    "mirroring": True,
    "peak_memory": 1_500_000_000,
    "epochs": 42,
    "seconds": 300.0,
}
PLAN = plan(epochs=3)
PREPARING = Progress(Stage.PREPARING, 0, 0, None, 0.0, None, done=2, total=8, prepared=0.25)
TRAINING = Progress(
    stage=Stage.TRAINING,
    step=20,
    steps=80,
    epoch=3,
    epochs=10,
    fraction=0.25,
    eta_seconds=30.0,
    train_loss=0.25,
    val_dice=0.75,
    images_per_second=32.0,
    network=2,
    networks=3,
)
EXAMPLES: list[tuple[Event, dict[str, Any]]] = [
    (
        PlanMade(PLAN, StoredSplit([1, 2], [3], [4], "file")),
        {
            "plan": PLAN.to_json(),
            "split": {"train": [1, 2], "val": [3], "test": [4], "grouping": "file"},
            "type": "plan",
        },
    ),
    (EstimateMade(ESTIMATE), {"estimate": ESTIMATE_JSON, "type": "estimate"}),
    (Started(3, [POINT]), {"epoch": 3, "curve": [POINT_JSON], "type": "start"}),
    (
        PREPARING,
        {
            "stage": "preparing",
            "step": 0,
            "epoch": 0,
            "epochs": None,
            "fraction": 0.0,
            "eta_seconds": None,
            "done": 2,
            "total": 8,
            "prepared": 0.25,
            "type": "progress",
        },
    ),
    (
        TRAINING,
        {
            "stage": "training",
            "step": 20,
            "steps": 80,
            "epoch": 3,
            "epochs": 10,
            "fraction": 0.25,
            "eta_seconds": 30.0,
            "train_loss": 0.25,
            "val_dice": 0.75,
            "images_per_second": 32.0,
            "network": 2,
            "networks": 3,
            "type": "progress",
        },
    ),
    (EpochEnded(POINT), {"point": POINT_JSON, "type": "epoch"}),
    (Note("Memory ran out."), {"text": "Memory ran out.", "type": "note"}),
    (Stopping(), {"type": "stopping"}),
    (
        Failed("diverged", "The loss is no number.", "Choose a lower learning rate."),
        {
            "code": "diverged",
            "reason": "The loss is no number.",
            "cure": "Choose a lower learning rate.",
            "type": "error",
        },
    ),
    (
        Done(
            False,
            "/model.zip",
            Metrics.from_json(METRICS),
            Decisions(mirroring=MirroringDecision("none", "Why.")),
            ["Few."],
        ),
        {
            "stopped": False,
            "package": "/model.zip",
            "metrics": METRICS,
            "decisions": {"mirroring": {"used": "none", "reason": "Why."}},
            "warnings": ["Few."],
            "type": "done",
        },
    ),
]


@pytest.mark.parametrize(("event", "values"), EXAMPLES, ids=[values["type"] for _, values in EXAMPLES])
def test_the_form_of_each_event(event: Event, values: dict[str, Any]) -> None:
    line = to_line(event)
    assert "\n" not in line
    assert json.loads(line) == values
    assert read_event(line) == event


def test_numbers_that_are_undefined_are_null_on_the_way() -> None:
    line = to_line(EpochEnded(replace(POINT, val_dice=math.nan, val_loss=math.inf)))
    assert json.loads(line)["point"]["val_dice"] is None
    back = read_event(line)
    assert isinstance(back, EpochEnded)
    assert math.isnan(back.point.val_dice)
    assert back.point.score == (0.0, -math.inf)


def test_a_training_that_was_stopped_has_no_metrics() -> None:
    done = Done(True, None, None, Decisions(), [])
    assert json.loads(to_line(done))["metrics"] == {}
    assert read_event(to_line(done)) == done


def test_a_line_that_is_no_event_is_refused() -> None:
    for line, said in (('{"type": "surprise"}', "surprise"), ('{"type": "note"}', "text"), ("Traceback", "Expecting")):
        with pytest.raises(ValueError, match=said):
            read_event(line)


def test_a_row_keeps_progress_without_its_type() -> None:
    values = without_type(PREPARING)
    assert "type" not in values
    assert (values["stage"], values["prepared"]) == ("preparing", 0.25)


def test_epochs_of_several_networks_go_on_counting_and_share_the_whole(tmp_path: Path) -> None:
    told: list[Event] = []
    part = Part(number=1, count=4, seed=0, train=[], val=[], val_cases=[], folder=tmp_path)
    tell = as_part(told.append, part, before=10)
    own = replace(TRAINING, network=None, networks=None)
    for event in (Started(3, [POINT]), own, EpochEnded(POINT), Note("x")):
        tell(event)
    shifted = replace(POINT, epoch=13)
    assert told == [
        Started(13, [shifted]),
        replace(own, epoch=13, epochs=20, fraction=1.25 / 4, eta_seconds=90.0, network=2, networks=4),
        EpochEnded(shifted),
        Note("x"),
    ]
    assert as_part(told.append, replace(part, count=1), before=0) == told.append


def test_a_reporter_warns_once_and_ends_what_somebody_wants_to_end() -> None:
    told: list[Event] = []
    stop = [False]
    reporter = Reporter(told.append, lambda: stop[0], ["Known."])
    reporter.warn("Known.", "New.")
    reporter.note("Now.")
    reporter.progress(Stage.PREPARING, 2, 8)
    stop[0] = True
    with pytest.raises(StoppedError):
        reporter.progress(Stage.EVALUATING, 1, 2, epoch=3, epochs=3)
    assert reporter.warnings == ["Known.", "New.", "Now."]
    assert told == [Note("Now."), PREPARING]


@pytest.mark.slow
def test_reading_events_needs_no_torch() -> None:
    code = "import ml_core.training.events, ml_core.training.job, sys; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False"]
