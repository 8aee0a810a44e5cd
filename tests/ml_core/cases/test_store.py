"""What is read before a training: by threads, in order, and not longer than the time budget has time for it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ml_core.cases.store import open_store
from ml_core.dataset.splits import Split
from ml_core.files import in_order
from ml_core.planning.budget import Deadline
from ml_core.training.split import order_to_read
from tests.ml_core.training.test_trainer import draw, plan_for, result, train


def test_results_come_in_order_and_only_a_few_are_made_ahead() -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def work(number: int) -> int:
        with lock:
            begun.append(number)
        time.sleep(0.02 if number % 2 else 0.0)
        return number

    results = in_order(work, range(20), 2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert max(begun) <= 5 + 2
    results.close()
    assert len(begun) < 20
    assert list(in_order(work, range(20), 3)) == list(range(20))


def test_an_error_comes_in_its_place() -> None:
    results = in_order(lambda number: 1 // number, [1, 0, 1], 2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_reading_stops_when_its_time_is_over_but_not_before_the_least(tmp_path: Path) -> None:
    cases = draw(tmp_path, 6)
    late = Deadline(time.monotonic() - 1)
    stored = open_store(tmp_path / "store", cases, plan_for(cases), lambda done, total: None, deadline=late, least=3)
    assert len(stored) == 3
    whole = open_store(tmp_path / "store", cases, plan_for(cases), lambda done, total: None)
    assert [case.stem for case in whole[:3]] == [case.stem for case in stored]
    assert len(whole) == 6


def test_each_part_of_each_fold_is_read_first() -> None:
    splits = [Split([1, 2, 3, 4, 5], [0], [], ""), Split([0, 2, 3, 4, 5], [1], [], "")]
    order, least = order_to_read(splits)
    assert sorted(order) == [0, 1, 2, 3, 4, 5]
    assert least == 2
    assert set(order[:least]) == {0, 1}
    assert order_to_read([Split([3, 4, 7], [5, 6], [0], "")])[0][:2] == [3, 5]


@pytest.mark.slow
def test_a_dataset_too_large_for_the_budget_is_learnt_from_in_part_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_core.planning.budget.PREPARING_SHARE", 0.0)
    monkeypatch.setattr("ml_core.planning.budget.MIN_PREPARING_SHARE", 0.0)
    events = train(tmp_path / "run", draw(tmp_path, 12), epochs=1, time_budget_seconds=60)
    assert result(events).package
    assert any("Only 2 of the 12 cases could be read" in text for text in result(events).warnings)
    complete = train(tmp_path / "other", draw(tmp_path, 12), epochs=1)  # without a budget there is time for all
    assert not any("could be read" in text for text in result(complete).warnings)


def test_many_cases_keep_fewer_places_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = draw(tmp_path, 3)
    plan = plan_for(cases)

    def opened() -> list[dict[int, int]]:
        stored = open_store(tmp_path / "store", cases, plan, lambda done, total: None)
        return [{index: len(rows) for index, rows in case.places.items()} for case in stored]

    most = opened()
    monkeypatch.setattr("ml_core.cases.store.PLACES_IN_MEMORY", 300)
    few = opened()
    assert all(set(one) == set(other) for one, other in zip(most, few, strict=True))
    assert all(0 < count <= 100 for one in few for count in one.values())
    assert max(most[0].values()) > 100
    labels = open_store(tmp_path / "store", cases, plan, lambda done, total: None)[0]
    index, row, column = labels.places[1][0]
    assert np.asarray(labels.labels)[index, row, column] == 1
