"""The comparison with other tools: one split for all, one scorer that hides nothing, one clock."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from benchmarks.peers import common, scoring
from benchmarks.peers.clock import Clock
from tests.e2e import drawings


@pytest.fixture
def task(tmp_path: Path) -> common.Task:
    archive = tmp_path / "discs.zip"
    archive.write_bytes(drawings.png_dataset(10))
    return common.prepare(archive, tmp_path / "data")


def test_the_last_fifth_is_unseen_and_lies_apart(task: common.Task) -> None:
    assert (len(task.train), len(task.unseen)) == (8, 2)
    assert task.values == [0, 255]
    names = [Path(image).name for image, _ in task.train + task.unseen]
    assert names == sorted(names)
    assert all("/unseen/" in image for image, _ in task.unseen)
    assert [tuple(pair) for pair in common.Task.read(task.file).unseen] == task.unseen


def test_the_splits_of_the_known_sets_are_disjoint() -> None:
    names = [f"case_{number:03d}" for number in range(78)]
    for split, _ in common.SPLITS.values():
        train, unseen = split(names)
        assert unseen
        assert not set(train) & set(unseen)


def test_perfect_predictions_score_one_and_a_missing_one_is_an_error(task: common.Task, tmp_path: Path) -> None:
    for image, mask in task.unseen:
        _, labels = common.load((image, mask), task.values)
        common.write_prediction(labels, image, task.values, tmp_path)
    score = scoring.score(task, tmp_path / "predictions")
    assert [item["dice"] for item in score["classes"]] == [1.0, 1.0]
    first = sorted((tmp_path / "predictions").iterdir())[0]
    PILImage.fromarray(np.zeros((drawings.SIDE, drawings.SIDE), np.uint8)).save(first)
    worse = scoring.score(task, tmp_path / "predictions")["classes"][1]
    assert (worse["dice"], worse["misses"]) == (0.5, 1)
    first.unlink()
    with pytest.raises((OSError, ValueError)):
        scoring.score(task, tmp_path / "predictions")


def test_labels_that_the_task_lacks_are_an_error() -> None:
    assert common.positions(np.array([0, 255, 128]), [0, 128, 255]).tolist() == [0, 2, 1]
    with pytest.raises(ValueError, match="labels other than"):
        common.positions(np.array([0, 7]), [0, 255])


def test_the_clock_begins_no_step_that_would_end_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("benchmarks.peers.clock.time.monotonic", lambda: now[0])
    clock = Clock(10.0)
    now[0] += 3  # reading files counts
    assert clock.go_on()
    for _ in range(3):
        now[0] += 2
        assert clock.go_on()
    now[0] += 2  # 11 s: over
    assert not clock.go_on()
    assert clock.steps == 4
