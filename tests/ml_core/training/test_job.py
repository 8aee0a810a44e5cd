"""The job file of a training, frozen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ml_core.dataset.case import Case
from ml_core.dataset.classes import LabelClass
from ml_core.dataset.splits import StoredSplit
from ml_core.planning.budget import DEFAULT_SECONDS
from ml_core.planning.request import ConfigErrors, TrainingRequest
from ml_core.training.job import TrainingJob
from tests.ml_core.planning.test_rules import plan

CASE = Case(1, "one", Path("/image.png"), Path("/mask.png"), "patient 1", "abc def")
CLASSES: list[LabelClass] = [{"value": 0, "name": "background", "color": "#000000"}]
PLAN = plan(epochs=3)
JOB = TrainingJob(
    cases=[CASE],
    classes=CLASSES,
    fingerprint=PLAN.fingerprint,
    hyperparameters=TrainingRequest.from_json({"epochs": 3}),
    folder=Path("/run"),
    store=Path("/store"),
    facts={"name": "Model 1"},
    split=StoredSplit([1], [2]),
    earlier_split=StoredSplit([2], [1]),
    warm_start=Path("/earlier.zip"),
    plan=PLAN,
    batch_limit=2,
    caveats=["Copies."],
)
VALUES: dict[str, Any] = {
    "cases": [
        {
            "id": 1,
            "name": "one",
            "image": "/image.png",
            "mask": "/mask.png",
            "group": "patient 1",
            "key": "abc def",
            "codes": {},
        }
    ],
    "classes": CLASSES,
    "fingerprint": PLAN.fingerprint.to_json(),
    "hyperparameters": {"epochs": 3},
    "folder": "/run",
    "store": "/store",
    "default_seconds": DEFAULT_SECONDS,
    "facts": {"name": "Model 1"},
    "split": {"train": [1], "val": [2], "test": [], "grouping": "as stored"},
    "earlier_split": {"train": [2], "val": [1], "test": [], "grouping": "as stored"},
    "warm_start": "/earlier.zip",
    "plan": PLAN.to_json(),
    "batch_limit": 2,
    "caveats": ["Copies."],
}


def test_the_form_of_a_job(tmp_path: Path) -> None:
    values = json.loads(json.dumps(VALUES))
    assert JOB.to_json() == values
    path = tmp_path / "job.json"
    path.write_text(json.dumps(values))
    assert TrainingJob.read(path) == JOB


def test_wishes_that_cannot_be_are_named() -> None:
    with pytest.raises(ConfigErrors, match="epochs"):
        TrainingJob.from_json({**VALUES, "hyperparameters": {"epochs": -1}})


def test_a_first_attempt_has_nothing_of_an_earlier_one() -> None:
    """The platform writes what the row has: empty documents."""
    job = TrainingJob.from_json({**VALUES, "plan": {}, "earlier_split": {}, "split": None, "warm_start": None})
    assert (job.plan, job.earlier_split, job.split, job.warm_start) == (None, None, None, None)
