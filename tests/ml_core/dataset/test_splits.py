"""No patient and no picture on two sides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from ml_core.dataset.splits import Fold, Split, StoredSplit, cross_validation, join, reuse_split, split_cases
from ml_core.errors import ConfigError

PARTS = ("train", "val", "test")


def sides(split: Split, marks: Sequence[object]) -> dict[str, set[object]]:
    assert sorted(split.train + split.val + split.test) == list(range(len(marks)))
    return {part: {marks[index] for index in getattr(split, part)} for part in PARTS}


def apart(split: Split, marks: Sequence[object]) -> bool:
    found = sides(split, marks)
    return not (found["train"] & found["val"] or (found["train"] | found["val"]) & found["test"])


@pytest.mark.parametrize("seed", range(10))
def test_a_patient_is_on_one_side_only(seed: int) -> None:
    groups = [f"patient {index % 33}" for index in range(140)]
    split = split_cases(groups, seed=seed)
    assert apart(split, groups)
    assert all(sides(split, groups).values())
    assert split.grouping == "patient"


def test_the_test_part_stays_when_the_seed_changes() -> None:
    groups = [""] * 30
    first, second = split_cases(groups, seed=1), split_cases(groups, seed=2)
    assert len(first.test) == 6
    assert first.test == second.test
    assert first.val != second.val
    assert split_cases(groups, seed=1) == first


def test_little_data_has_no_test_part_but_always_something_to_learn_and_to_check() -> None:
    for count in range(2, 30):
        split = split_cases([""] * count)
        assert split.train
        assert split.val
        assert not split.test
        assert split.held_out == split.val


@pytest.mark.parametrize(
    ("count", "fraction", "size"), [(10, 0.2, 2), (5, 0.1, 1), (60, 0.0, 0), (4, 0.5, 2), (3, 0.5, 1), (2, 0.5, 0)]
)
def test_a_test_part_that_was_asked_for(count: int, fraction: float, size: int) -> None:
    split = split_cases([""] * count, test_fraction=fraction)
    assert len(split.test) == size
    assert split.train
    assert split.val


@pytest.mark.parametrize("fraction", [-0.1, 0.6])
def test_more_than_half_cannot_be_held_out(fraction: float) -> None:
    with pytest.raises(ValueError, match="test_fraction"):
        split_cases([""] * 9, test_fraction=fraction)


def test_slices_of_one_patient_are_kept_in_blocks() -> None:
    split = split_cases(["p"] * 78)
    assert "one patient" in split.grouping
    assert split.test
    assert changes(split) <= 9


def changes(split: Split) -> int:
    """How often neighbours are on different sides."""
    side = {index: part for part in PARTS for index in getattr(split, part)}
    return sum(side[index] != side[index + 1] for index in range(len(side) - 1))


def test_a_patient_with_most_of_the_cases_is_trained_on() -> None:
    groups = ["big"] * 12 + ["a", "b", "c", "d"]
    for seed in range(10):
        split = split_cases(groups, seed=seed, test_fraction=0.2)
        assert apart(split, groups)
        assert set(range(12)) <= set(split.train)


@pytest.mark.parametrize("seed", range(10))
def test_near_duplicates_link_patients(seed: int) -> None:
    groups = [f"patient {index // 2}" for index in range(80)]
    duplicates = list(range(80))
    duplicates[79] = duplicates[0]
    split = split_cases(groups, seed=seed, duplicates=duplicates)
    assert apart(split, groups)
    assert apart(split, duplicates)
    assert split.grouping == "patient; near-duplicates together"
    assert sides(split, groups)["test"] == sides(split_cases(groups, duplicates=duplicates), groups)["test"]


@pytest.mark.parametrize("seed", range(10))
def test_near_duplicates_among_files_and_within_one_patient(seed: int) -> None:
    pairs = [index % 20 for index in range(40)]
    assert apart(split_cases([""] * 40, seed=seed, duplicates=pairs), pairs)
    copies = list(range(40))
    copies[33] = copies[2]
    split = split_cases(["p"] * 40, seed=seed, duplicates=copies)
    assert apart(split, copies)
    assert "one patient" in split.grouping
    assert split.test


def test_no_duplicates_change_nothing() -> None:
    for groups in ([""] * 35, ["p"] * 35, [f"p{index % 9}" for index in range(35)]):
        assert split_cases(groups, duplicates=list(range(35))) == split_cases(groups)


def test_a_video_is_cut_into_blocks_and_says_so() -> None:
    split = split_cases([""] * 60, duplicates=[0] * 50 + list(range(1, 11)))
    assert "blocks" in split.grouping
    assert "look alike" in split.grouping
    assert changes(split) <= 9
    assert split.test


def test_likeness_across_patients_never_divides_one() -> None:
    groups = [f"p{index % 12}" for index in range(60)]
    split = split_cases(groups, duplicates=[0] * 60)
    assert apart(split, groups)
    assert "left apart" in split.grouping
    one = split_cases(["p"] * 60, duplicates=[0] * 60)
    assert "one patient" in one.grouping
    assert "left apart" in one.grouping


@pytest.mark.parametrize("folds", [2, 5])
def test_every_unit_is_validated_on_once(folds: int) -> None:
    groups = [f"p{index % 40}" for index in range(100)]
    splits = cross_validation(groups, folds, seed=3)
    assert len(splits) == folds
    assert all(apart(split, groups) for split in splits)
    assert {tuple(split.test) for split in splits} == {tuple(split_cases(groups).test)}
    validated = sorted(index for split in splits for index in split.val)
    assert validated == sorted(set(range(100)) - set(splits[0].test))
    sizes = [len({groups[index] for index in split.val}) for split in splits]
    assert max(sizes) - min(sizes) <= 1
    assert cross_validation(groups, folds, seed=3) == splits
    assert cross_validation(groups, folds, seed=4) != splits


@pytest.mark.parametrize("folds", [1, 4])
def test_too_few_or_too_many_folds_are_refused(folds: int) -> None:
    with pytest.raises(ConfigError, match=r"folds? cannot be made") as refused:
        cross_validation(["a", "b", "b", "c"], folds)
    assert refused.value.code == "folds"
    assert "2 to 3" in refused.value.cure


@pytest.mark.parametrize(
    ("split", "values"),
    [
        (
            StoredSplit([1, 2], [3], [4], "patient"),
            {"train": [1, 2], "val": [3], "test": [4], "grouping": "patient"},
        ),
        (
            StoredSplit(["a"], ["b"], folds=[Fold(["a"], ["b"]), Fold(["b"], ["a"])]),
            {
                "train": ["a"],
                "val": ["b"],
                "test": [],
                "grouping": "as stored",
                "folds": [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}],
            },
        ),
    ],
)
def test_the_form_of_a_stored_split(split: StoredSplit, values: dict[str, Any]) -> None:
    assert split.to_json() == values
    assert StoredSplit.from_json(values) == split


def test_a_stored_split_is_reused() -> None:
    groups = [f"p{index % 34}" for index in range(70)]
    ids = list(range(500, 570))
    split = split_cases(groups, seed=5)
    stored = StoredSplit.from_json(json.loads(json.dumps(split.to_names(ids).to_json())))
    assert reuse_split(stored, ids, groups) == split
    backwards = reuse_split(stored, ids[::-1], groups[::-1])
    assert {ids[::-1][index] for index in backwards.test} == set(stored.test)


def test_new_cases_are_trained_on_unless_they_belong_to_a_held_out_one() -> None:
    stored = StoredSplit(["a"], ["b"], ["c", "gone"], "patient")
    names = ["a", "b", "c", "new", "of b", "like c", "like both"]
    groups = ["A", "B", "C", "N", "B", "X", "B"]
    split = reuse_split(stored, names, groups, duplicates=[0, 1, 2, 3, 4, 2, 5])
    assert split == Split([0, 3], [1, 4, 6], [2, 5], "patient")
    linked = reuse_split(stored, names, groups, duplicates=[0, 1, 2, 3, 4, 2, 2])
    assert linked.test == [2, 4, 5, 6]  # through its near-duplicate the new cases of B belong to C, and B itself stays
    assert linked.val == [1]


def test_new_slices_of_a_patient_in_blocks_are_trained_on() -> None:
    stored = split_cases(["p"] * 40).to_names(list(range(40)))
    split = reuse_split(stored, list(range(44)), ["p"] * 44)
    assert set(range(40, 44)) <= set(split.train)
    assert len(split.test) == len(stored.test)


def test_a_stored_split_that_cannot_be_used_is_refused() -> None:
    for stored in (StoredSplit([1], [9]), StoredSplit([9], [1]), StoredSplit([1, 2], [2])):
        with pytest.raises(ConfigError) as refused:
            reuse_split(stored, [1, 2][: len(stored.train)], ["", ""][: len(stored.train)])
        assert refused.value.code == "split"


def test_groups_are_numbered_in_order_of_appearance() -> None:
    assert join(6, [(4, 2), (5, 0), (2, 3)]).tolist() == [0, 1, 2, 2, 2, 0]
    assert join(3, []).tolist() == [0, 1, 2]


def test_one_case_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="two cases"):
        split_cases(["a"])
