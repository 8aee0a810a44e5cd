"""One whole training as a process of its own: a job file in, events out as JSON lines, a model package at the end."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_core.config import Hyperparameters
from ml_core.data import Case, open_store
from ml_core.errors import MLError, TrainingError
from ml_core.evaluation import evaluate
from ml_core.package import Package, read_package, to_json, write_package
from ml_core.planning import DEFAULT_SECONDS, Machine, Plan, make_plan
from ml_core.predictor import Predictor
from ml_core.splits import Split, split_cases
from ml_core.trainer import TrainResult, fit

EVALUATION_SHARE = 0.12  # of a time budget, kept back for the final evaluation and the package


@dataclass(frozen=True)
class TrainingJob:
    """What a training needs. `folder` gets checkpoints, pictures and model.zip; `store` the decoded samples (may be shared)."""

    cases: list[Case]
    classes: list[dict[str, Any]]
    fingerprint: dict[str, Any]
    hyperparameters: dict[str, Any]
    folder: Path
    store: Path
    default_seconds: int = DEFAULT_SECONDS
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> TrainingJob:
        values = json.loads(path.read_text())
        cases = [Case.from_dict(item) for item in values.pop("cases")]
        return cls(**{**values, "cases": cases, "folder": Path(values["folder"]), "store": Path(values["store"])})


Event = Callable[[dict[str, Any]], None]


def run(job: TrainingJob, *, on_event: Event, should_stop: Callable[[], bool]) -> None:
    """Plan, split, decode, train, evaluate, package. The last event is `done`; failures are raised as MLError."""
    begun = time.monotonic()
    wanted = Hyperparameters.from_dict(job.hyperparameters)
    plan = make_plan(wanted, job.fingerprint, job.classes, Machine.here(), default_seconds=job.default_seconds)
    split = split_cases(
        [case.group for case in job.cases], seed=plan.seed, validation_fraction=plan.validation_fraction
    )
    parts = {"train": split.train, "val": split.val, "test": split.test}
    shown_split = {name: [job.cases[index].id for index in indices] for name, indices in parts.items()}
    shown_split["grouping"] = split.grouping  # type: ignore[assignment]
    on_event(
        {
            "type": "plan",
            "hyperparameters": plan.hyperparameters(),
            "plan": plan.to_dict(),
            "split": shown_split,
        }
    )

    def on_decoded(done: int, total: int) -> None:
        if should_stop():
            raise _StoppedError
        share = done / total
        on_event({"type": "progress", "stage": "preparing", "done": done, "total": total, "step": 0, "epoch": 0,
                  "epochs": plan.epochs, "fraction": 0.0, "prepared": share, "eta_seconds": None})  # fmt: skip

    learnt_from = split.train + split.val
    try:
        stored = open_store(job.store, [job.cases[index] for index in learnt_from], plan, on_decoded)
    except _StoppedError:
        on_event({"type": "done", "stopped": True, "package": None, "metrics": {}, "warnings": []})
        return
    deadline = None
    if plan.time_budget_seconds:
        deadline = begun + plan.time_budget_seconds * (1 - EVALUATION_SHARE)
        if time.monotonic() > deadline:
            raise TrainingError(
                "no_time",
                "The time budget was over before the images were decoded.",
                "Allow more time; a second try starts faster.",
            )
    cut = len(split.train)
    result = fit(
        plan,
        stored[:cut],
        stored[cut:],
        job.folder,
        on_event=on_event,
        should_stop=should_stop,
        deadline=deadline,
    )
    if result.network is None:
        on_event({"type": "done", "stopped": True, "package": None, "metrics": {}, "warnings": result.warnings})
        return

    metrics, stopped = {}, result.stopped
    if not stopped:
        try:
            metrics = _evaluate(job, plan, split, result, on_event, should_stop)
        except _StoppedError:
            stopped = True
    warnings = result.warnings + _warnings(split.grouping, metrics)
    facts = {**job.facts, "epochs": result.epochs, "best_epoch": result.best_epoch, "seconds": round(time.monotonic() - begun, 1),
             "warnings": warnings}  # fmt: skip
    path = job.folder / "model.zip"
    write_package(path, Package(plan, result.network.state_dict(), metrics, shown_split, facts))
    read_package(path)  # done means: it loads
    on_event(
        {
            "type": "done",
            "stopped": stopped,
            "package": str(path),
            "metrics": metrics,
            "warnings": warnings,
        }
    )


def _evaluate(
    job: TrainingJob, plan: Plan, split: Split, result: TrainResult, on_event: Event, should_stop: Callable[[], bool]
) -> dict[str, Any]:
    assert result.network is not None
    pictures = job.folder / "cases"
    pictures.mkdir(exist_ok=True)

    def on_case(done: int, total: int) -> None:
        if should_stop():
            raise _StoppedError
        on_event({"type": "progress", "stage": "evaluating", "done": done, "total": total, "epoch": result.epochs,
                  "epochs": result.epochs, "step": 0, "fraction": 1.0, "eta_seconds": None})  # fmt: skip

    held_out = [job.cases[index] for index in split.held_out]
    part = "test" if split.test else "val"
    return evaluate(Predictor(result.network, plan), held_out, evaluated_on=part, pictures=pictures, on_case=on_case)


def _warnings(grouping: str, metrics: dict[str, Any]) -> list[str]:
    found = []
    if "one patient" in grouping:
        found.append("All images come from one patient, so the numbers say little about other patients.")
    if metrics and metrics["evaluated_on"] == "val":
        found.append(
            "The dataset is too small for a test part of its own: the numbers are those of the cases that the best weights "
            "were chosen on, and a little too good."
        )
    return found


class _StoppedError(Exception):
    pass


def main(path: Path) -> int:
    """The process: events on standard output; the word `stop` on standard input ends it in good order, its end at once."""
    out, lock = sys.stdout, threading.Lock()
    sys.stdout = sys.stderr  # what a library prints must not look like an event
    stop = threading.Event()

    def on_event(event: dict[str, Any]) -> None:
        with lock:
            out.write(json.dumps(to_json(event)) + "\n")
            out.flush()

    threading.Thread(target=_listen, args=(stop,), daemon=True).start()
    try:
        run(TrainingJob.read(path), on_event=on_event, should_stop=stop.is_set)
    except MLError as error:
        on_event({"type": "error", "code": error.code, "reason": error.reason, "cure": error.cure})
        return 2
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error).lower():
            if "more than 1 value per channel" not in str(error):
                raise
            cure = "Choose a batch size of 2 or more, or larger patches."
            on_event(
                {
                    "type": "error",
                    "code": "batch_too_small",
                    "reason": "The batch is too small for this architecture.",
                    "cure": cure,
                }
            )
            return 2
        reason, cure = (
            "There was not enough memory for this training.",
            "Choose a smaller batch or patch size, or a smaller encoder.",
        )
        on_event({"type": "error", "code": "out_of_memory", "reason": reason, "cure": cure})
        return 2
    return 0


def _listen(stop: threading.Event) -> None:
    for line in sys.stdin:
        if line.strip() == "stop":
            stop.set()
    if not stop.is_set():
        import os

        os._exit(3)  # whoever started this is gone; the checkpoint on disk is whole
