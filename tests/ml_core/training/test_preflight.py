"""Before a training: does it fit into memory and onto the disk; and what happens when it does not after all."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml_core.dataset.splits import StoredSplit
from ml_core.errors import TrainingError
from ml_core.planning.budget import Deadline
from ml_core.planning.plan import Machine, Plan
from ml_core.prediction.package import read_package
from ml_core.training import ensemble
from ml_core.training.ensemble import Part, train_part
from ml_core.training.events import Event, Note, Reporter
from ml_core.training.job import TrainingJob
from ml_core.training.preflight import GIB, check_disk, fit_into_memory, memory_needed
from ml_core.training.run import package_best, run
from ml_core.training.state import State
from ml_core.training.trainer import Fitted, fit
from tests.ml_core.training.test_trainer import (
    CLASSES,
    QUICK,
    asked,
    curve,
    draw,
    fingerprint_of,
    package_of,
    plan_for,
    planned,
    result,
    train,
)

Usage = namedtuple("Usage", "total used free")


def test_memory_grows_with_the_batch_and_the_patch(tmp_path: Path) -> None:
    plan = plan_for(draw(tmp_path, 4, side=128), patch_size=64, batch_size=4)
    small, large = memory_needed(plan, 2), memory_needed(plan, 8)
    wide = memory_needed(replace(plan, patch_size=128), 2)
    assert small is not None
    assert large is not None
    assert wide is not None
    assert small < min(large, wide)


def test_a_batch_too_large_for_the_memory_is_lowered_and_one_that_never_fits_refused(tmp_path: Path) -> None:
    plan = plan_for(draw(tmp_path, 4, side=128), patch_size=128, batch_size=64)
    need = memory_needed(plan, 16)
    assert need
    fitted, said = fit_into_memory(plan, Machine(False, 2, False, memory=int(need / 0.9)))
    assert fitted.batch_size == 16
    assert "from 64 to 16" in str(said)
    assert fitted.reasons["batch_size"] == said
    with pytest.raises(TrainingError) as refused:
        fit_into_memory(plan, Machine(False, 2, False, memory=GIB // 4))
    assert "batch of 2" in refused.value.reason
    assert "0.2 GB are free" in refused.value.reason
    assert fit_into_memory(plan, Machine(False, 2, False, memory=64 * GIB)) == (plan, None)


def test_a_full_disk_is_told_with_numbers_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = draw(tmp_path, 4)
    plan = plan_for(cases)
    check_disk(plan, cases, tmp_path, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(1, 1, 1000))
    with pytest.raises(TrainingError, match="GB on the disk") as refused:
        check_disk(plan, cases, tmp_path, tmp_path)
    assert refused.value.code == "too_little_disk"


@pytest.mark.slow
def test_when_memory_runs_out_the_training_goes_on_with_half_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []

    def short_of_memory(plan: Any, *args: Any, **kwargs: Any) -> Any:
        batches.append(plan.batch_size)
        if plan.batch_size > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return fit(plan, *args, **kwargs)

    monkeypatch.setattr(ensemble, "fit", short_of_memory)
    events = train(tmp_path / "run", draw(tmp_path, 4), batch_size=8)
    assert batches == [8, 4, 2]
    assert [event.text for event in events if isinstance(event, Note)] == [
        "Memory ran out with a batch of 8, so it goes on with 4.",
        "Memory ran out with a batch of 4, so it goes on with 2.",
    ]
    assert len(curve(events)) == 2
    assert len(result(events).warnings) >= 2
    assert result(events).package


def test_the_deadline_stays_where_it_was_when_memory_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 10 seconds of an earlier attempt count once; the 20 more that each checkpoint speaks of have passed by the clock."""
    spent, deadlines = iter([10.0, 30.0, 50.0]), list[float | None]()

    def short_of_memory(plan: Plan, *args: Any, deadline: Deadline, **kwargs: Any) -> Fitted:
        deadlines.append(deadline.at)
        if plan.batch_size > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return Fitted(None, 0, 0, False, [])

    monkeypatch.setattr(ensemble, "fit", short_of_memory)
    monkeypatch.setattr(ensemble, "read_state", lambda latest: State(seconds=next(spent)))
    plan = plan_for(draw(tmp_path, 4), batch_size=8)
    part = Part(number=0, count=1, seed=0, train=[], val=[], val_cases=[], folder=tmp_path)
    reporter = Reporter(lambda event: None, lambda: False)
    fitting, _ = train_part(plan, part, 0, Deadline(100.0, lambda: 0.0), reporter, None)
    assert deadlines == [90.0, 90.0, 90.0]
    assert fitting.batch_size == 2


@pytest.mark.slow
def test_a_resumed_training_keeps_its_plan_and_may_get_more_epochs(tmp_path: Path) -> None:
    cases = draw(tmp_path, 4)
    stopped = train(tmp_path / "run", cases, epochs=3, stop_after=2)
    plan = planned(stopped).plan
    wanted = {name: QUICK[name] for name in ("batch_size", "learning_rate")}  # another patch would be planned today
    events: list[Event] = []
    job = TrainingJob(
        cases,
        CLASSES,
        fingerprint_of(cases),
        asked({**wanted, "epochs": 5}),
        tmp_path / "run",
        tmp_path / "store",
        plan=plan,
    )
    job = replace(job, earlier_split=StoredSplit([4, 1], [3, 2], [], "of an earlier program"))
    run(job, on_event=events.append, should_stop=lambda: False)
    assert planned(events).plan.patch_size == QUICK["patch_size"]
    assert planned(events).split == job.earlier_split
    assert [point.epoch for point in curve(events)] == [3, 4, 5]


def test_a_second_attempt_that_is_stopped_before_its_first_step_keeps_the_weights_of_the_first(tmp_path: Path) -> None:
    cases = draw(tmp_path, 4)
    train(tmp_path / "run", cases, epochs=3, stop_after=2)
    (tmp_path / "run/model.zip").unlink()
    events = train(tmp_path / "run", cases, epochs=3, stop_after=0)
    assert result(events).stopped
    assert package_of(events).stat().st_size > 1000


def test_the_best_weights_of_a_killed_training_can_be_packaged(tmp_path: Path) -> None:
    cases = draw(tmp_path, 4)
    stopped = train(tmp_path / "run", cases, epochs=3, stop_after=2)
    (tmp_path / "run/model.zip").unlink()
    job = TrainingJob([], CLASSES, fingerprint_of(cases), asked(QUICK), tmp_path / "run", tmp_path / "store")
    job = replace(job, plan=planned(stopped).plan, split=planned(stopped).split)
    done = package_best(job)
    assert done.stopped
    assert done.package
    package = read_package(Path(done.package))
    assert (package.facts["epochs"], package.split) == (2, planned(stopped).split)


def test_without_weights_there_is_nothing_to_package(tmp_path: Path) -> None:
    cases = draw(tmp_path, 4)
    job = TrainingJob([], CLASSES, fingerprint_of(cases), asked(QUICK), tmp_path, tmp_path / "store")
    with pytest.raises(TrainingError, match="no weights to keep"):
        package_best(job)
