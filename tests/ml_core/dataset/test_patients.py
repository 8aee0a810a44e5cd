"""Patients as the names of their images tell them."""

from __future__ import annotations

import pytest

from ml_core.dataset.patients import group_of_name, groups_of_names
from ml_core.dataset.splits import split_cases


@pytest.mark.parametrize(
    ("name", "group"),
    [("sub-01_T1w", "sub-01"), ("ses/sub-AB12_x", "sub-ab12"), ("membrane_01", ""), ("subject1", ""), ("absub-1", "")],
)
def test_bids_names_tell_the_patient(name: str, group: str) -> None:
    assert group_of_name(name) == group


def names_of(pattern: str, patients: int, images: int) -> list[str]:
    return [pattern.format(p=patient, i=image) for patient in range(1, patients + 1) for image in range(images)]


@pytest.mark.parametrize(
    ("pattern", "first"),
    [
        ("TCGA_CS_{p:04d}_19960909/TCGA_CS_{p:04d}_19960909_{i}", "name TCGA_CS_0001"),
        ("volume-{p}_slice_{i:03d}", "name volume-1"),
        ("patient{p:02d}_z{i:02d}", "name patient01"),
        ("brats_2013_pat{p:04d}_{i}", "name brats_2013_pat0001"),
        ("IMG_{p}_jpg.rf.{i}af3", "name IMG_1"),  # changed copies of a picture
        ("case {p}/left{i}", "name case 1"),
    ],
)
def test_a_patient_with_several_images_is_known_by_the_name(pattern: str, first: str) -> None:
    names = names_of(pattern, 12, 4)
    groups = groups_of_names(names)
    assert groups[0] == first
    assert len(set(groups)) == 12
    split = split_cases(groups)
    sides = [{groups[index] for index in part} for part in (split.train, split.val, split.test)]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert split.grouping == "patient as the names tell"


@pytest.mark.parametrize(
    "names",
    [
        [f"membrane_{index:02d}" for index in range(30)],
        [f"ISIC_{index:07d}" for index in range(60)],
        [f"{kind}/{kind} ({index})" for kind in ("benign", "malignant", "normal") for index in range(40)],
        [f"grade{kind}/{index}" for kind in range(1, 5) for index in range(40)],
        [f"brats_2013_pat{index:04d}_1" for index in range(20)],
        [f"chaos3_{index:03d}" for index in range(74)],
        [f"CHNCXR_{index:04d}_{index % 2}" for index in range(80)],
        ["a", "b"],
        [],
    ],
)
def test_names_that_only_count_or_sort_images_tell_no_patient(names: list[str]) -> None:
    assert groups_of_names(names) == [""] * len(names)


def test_a_long_name_still_fits_into_the_column() -> None:
    groups = groups_of_names(names_of("x" * 80 + "{p}_{i}", 6, 3))
    assert len(set(groups)) == 6
    assert max(map(len, groups)) <= 64
