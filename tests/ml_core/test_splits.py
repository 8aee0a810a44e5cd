"""No patient on two sides."""

from __future__ import annotations

import pytest

from ml_core.splits import group_of_name, split_cases


def sides(groups: list[str], **options: float) -> dict[str, set[str]]:
    split = split_cases(groups, **options)  # type: ignore[arg-type]
    assert sorted(split.train + split.val + split.test) == list(range(len(groups)))
    return {part: {groups[index] for index in getattr(split, part)} for part in ("train", "val", "test")}


@pytest.mark.parametrize("seed", range(10))
def test_a_patient_is_on_one_side_only(seed: int) -> None:
    groups = [f"patient {index % 13}" for index in range(60)]
    found = sides(groups, seed=seed)
    assert not found["train"] & found["val"]
    assert not found["train"] & found["test"]
    assert not found["val"] & found["test"]
    assert all(found.values())


def test_the_test_part_stays_when_the_seed_changes() -> None:
    groups = [""] * 30
    first, second = split_cases(groups, seed=1), split_cases(groups, seed=2)
    assert first.test == second.test
    assert first.val != second.val
    assert split_cases(groups, seed=1) == first


def test_little_data_has_no_test_part_but_always_something_to_learn_and_to_check() -> None:
    for count in range(2, 10):
        split = split_cases([""] * count)
        assert split.train
        assert split.val
        assert not split.test
        assert split.held_out == split.val


def test_slices_of_one_patient_are_kept_in_blocks() -> None:
    split = split_cases(["p"] * 78)
    assert "one patient" in split.grouping
    side = {index: part for part in ("train", "val", "test") for index in getattr(split, part)}
    changes = sum(side[index] != side[index + 1] for index in range(77))
    assert changes <= 9


def test_one_case_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="two cases"):
        split_cases(["a"])


@pytest.mark.parametrize(
    ("name", "group"),
    [("sub-01_T1w", "sub-01"), ("ses/sub-AB12_x", "sub-ab12"), ("membrane_01", ""), ("subject1", ""), ("absub-1", "")],
)
def test_bids_names_tell_the_patient(name: str, group: str) -> None:
    assert group_of_name(name) == group
