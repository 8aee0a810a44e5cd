"""The split of a training beside that of its dataset, and from its document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_core.dataset.splits import StoredSplit
from ml_core.planning.request import TrainingRequest
from ml_core.training.split import same_again, split_job, stored_split
from tests.ml_core.training.test_trainer import draw, plan_for


def test_other_shares_leave_the_locked_test_part_as_it_is(tmp_path: Path) -> None:
    cases = draw(tmp_path, 8)
    stored = StoredSplit([4, 5, 6, 7, 8], [3], [1, 2])
    asked: list[dict[str, Any]] = [{"validation_fraction": 0.4}, {"folds": 3}]
    for wanted in asked:
        plan = plan_for(cases, **wanted)
        for split in split_job(cases, plan, TrainingRequest.from_json(wanted), stored, tmp_path / "store"):
            assert split.test == [0, 1]
            assert sorted(split.train + split.val) == [2, 3, 4, 5, 6, 7]


def test_splits_are_the_same_again_from_their_document(tmp_path: Path) -> None:
    cases = draw(tmp_path, 8)
    stored = StoredSplit([4, 5, 6, 7, 8], [3], [1, 2])
    for folds in (1, 3):
        wanted = {"folds": folds, "seed": 5}
        splits = split_job(
            cases, plan_for(cases, **wanted), TrainingRequest.from_json(wanted), stored, tmp_path / "store"
        )
        document = StoredSplit.from_json(json.loads(json.dumps(stored_split(cases, splits).to_json())))
        assert same_again(cases, document) == splits
        assert same_again(cases[:-1], document) is None
