"""The table of findings, and the classes that masks teach. What the check finds in files is in tests/datasets/test_two_doors.py."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_core.cases.store import stored_stem
from ml_core.dataset import findings
from ml_core.dataset.case import Case
from ml_core.dataset.checks import DatasetCheck, ReadPair
from ml_core.dataset.classes import COLORS, ClassTable, label_values
from ml_core.dataset.findings import DatasetRefusedError, Finding, Issue
from ml_core.dataset.folders import ReadCase
from ml_core.dataset.reading import Decision, Reading
from ml_core.dataset.survey import MaskFacts, MaskSurvey
from ml_core.errors import ImageError, TrainingError
from ml_core.front.progress import MAX_WARNINGS, ProgressBar
from ml_core.io import Image, Mask
from ml_core.io.image import Grid, Notice
from ml_core.planning.plan import Machine
from ml_core.planning.request import TrainingRequest
from ml_core.planning.rules import make_plan
from tests.synthetic import Array

ALL = {name: item for name, item in vars(findings).items() if isinstance(item, Finding)}
RED, GREEN, WHITE = 0xFF0000, 0x00FF00, 0xFFFFFF


def mask_of(values: list[int], coding: str = "values", palette: dict[int, str] | None = None) -> Mask:
    return Mask(np.array([values]), "rgb" if coding == "rgb" else "values", palette, False, None, None)


def learnt(table: ClassTable, *masks: Mask) -> list[Array]:
    found = []
    for mask in masks:
        present, counts = np.unique(mask.values, return_counts=True)
        found.append(table.learn(mask, dict(zip(present.tolist(), counts.tolist(), strict=True)))[0])
    return found


@pytest.mark.parametrize("name", ALL)
def test_every_finding_has_a_code_and_whole_sentences(name: str) -> None:
    found = ALL[name]
    facts: dict[str, Any] = {
        place: "X" for _, place, _, _ in string.Formatter().parse(found.reason + found.cure) if place
    }
    text = f"{found.reason} {found.cure}".format(**facts).strip()
    assert found.code.isidentifier()
    assert found.code.islower()
    assert text[0].isupper()
    assert text.endswith((".", "X"))  # X: the first problem, which is a sentence of its own
    if found.severity == "warning" or found.severity == "error":
        assert found.issue("a.png", **facts) == Issue(found.severity, found.code, "a.png", text)
    else:
        assert str(found.refusal(**facts)) == text
        with pytest.raises(AssertionError):
            found.issue("a.png", **facts)


def test_names_of_users_are_no_places_to_fill() -> None:
    assert findings.IMAGE_NAMED_TWICE.issue("{a}.png", twin="{b}.png").detail.startswith(
        "It has the same name as {b}.png."
    )


def test_a_refusal_names_the_first_problem() -> None:
    issues = [findings.IGNORED_FOLDER.issue("other", count="3 files"), findings.NO_MASK.issue("a.png", name="a")]
    assert str(findings.too_few(1, issues)) == (
        "Only one image with its mask could be used, and 2 pairs are needed. "
        "The first problem: a.png: No mask is named a. Add one or drop this."
    )
    assert "Add images" in str(findings.too_few(0, issues[:1]))


def decided(*masks: Mask, reading: Reading | None = None) -> Decision:
    survey = MaskSurvey(reading)
    for mask in masks:
        present, counts = np.unique(mask.values, return_counts=True)
        survey.add(MaskFacts.of(mask, dict(zip(present.tolist(), counts.tolist(), strict=True))))
    return survey.decide()


def test_colours_become_numbers_in_the_order_of_the_colours() -> None:
    masks = mask_of([0, 0, RED], "rgb"), mask_of([0, 0, GREEN], "rgb")
    for order in (masks, masks[::-1]):
        table = ClassTable(decision=decided(*order))
        assert [values.tolist() for values in learnt(table, *masks)] == [[[0, 0, 2]], [[0, 0, 1]]]
        assert table.codes() == {"#000000": 0, "#00ff00": 1, "#ff0000": 2}
        assert [row["color"] for row in table.rows({0, 1, 2})] == ["#000000", "#00ff00", "#ff0000"]
    again = ClassTable(table.rows({0, 1, 2}), table.decision)
    [third] = learnt(again, mask_of([RED, WHITE], "rgb"))
    assert third.tolist() == [[2, 3]]


def test_numbers_keep_theirs_with_the_colours_of_a_palette_or_of_ours() -> None:
    table = ClassTable(names={7: "organ"})
    learnt(table, mask_of([0, 7]), mask_of([7, 9], palette={7: "#111111", 9: "#222222"}))
    assert table.rows({0, 7, 9}) == [
        {"value": 0, "name": "background", "color": COLORS[0]},
        {"value": 7, "name": "organ", "color": COLORS[1]},
        {"value": 9, "name": "class 9", "color": "#222222"},
    ]
    assert table.codes() == {}
    many = ClassTable()
    learnt(many, mask_of(list(range(40))))
    assert len(set(many.colors().values())) == 40


@pytest.mark.parametrize(
    "masks", [[mask_of([0, 1]), mask_of([0, RED], "rgb")], [mask_of([0, RED], "rgb"), mask_of([0, 1])]]
)
def test_numbers_and_colours_do_not_mix_but_an_empty_mask_fits_both(masks: list[Mask]) -> None:
    table = ClassTable(decision=decided(masks[0]))
    learnt(table, mask_of([0, 0]), masks[0], mask_of([0, 0]))
    with pytest.raises(ImageError) as caught:
        learnt(table, masks[1])
    assert caught.value.code == "mixed_coding"


def test_a_colour_that_is_no_class_is_named() -> None:
    codes = {"#000000": 0, "#ff0000": 1}
    assert label_values(mask_of([0, RED], "rgb"), codes).tolist() == [[0, 1]]
    case = Case(1, "a", Path("a.png"), Path("m.png"), codes=codes)
    assert case.indices(mask_of([0, RED], "rgb"), [0, 1]).tolist() == [[0, 1]]
    with pytest.raises(TrainingError, match="#00ff00"):
        case.indices(mask_of([0, GREEN], "rgb"), [0, 1])


def pair_of(shape: tuple[int, ...], mask: Array | None = None) -> ReadPair:
    image = Image(
        np.arange(np.prod(shape), dtype=np.int32).reshape(1, *shape), None, None, "raster", None, None, Grid(shape)
    )
    values = np.arange(np.prod(shape)).reshape(shape) % 2 if mask is None else mask
    return ReadPair.of(image, Mask(values, "values", None, False, None, None), "i.png", "m.png")


def test_nothing_is_learnt_from_what_is_left_out() -> None:
    check = DatasetCheck(dimensions=3)
    check.add(pair_of((2, 8, 8)))
    with pytest.raises(ImageError, match="a picture among volumes") as caught:
        check.add(pair_of((8, 8), np.full((8, 8), 5)))
    assert caught.value.file == "i.png and m.png"
    assert set(check.classes.colors()) == {0, 1}
    check.leave_out(caught.value, "i")
    assert [(issue.severity, issue.code, issue.file) for issue in check.issues] == [
        ("error", "mixed_dimensions", "i.png and m.png")
    ]


def test_too_many_classes_end_the_check_at_once_with_what_was_found() -> None:
    check = DatasetCheck(issues=[Issue("warning", "ignored_folder", "x", "y")])
    # Each value twice, so that none looks like the number of one object.
    values = np.tile(np.arange(findings.MAX_CLASSES).reshape(1, 16, 8), 2)
    check.add(pair_of(values.shape, values))
    with pytest.raises(DatasetRefusedError, match="more than 128") as caught:
        check.add(pair_of(values.shape, values + 1))
    assert [issue.code for issue in caught.value.issues] == ["ignored_folder"]


def test_cases_without_a_signature_are_not_compared() -> None:
    """Of very many cases no more than MAX_COMPARED are kept, and some may be left out afterwards."""
    check, path = DatasetCheck(), Path("i.png")
    cases = []
    for number, size in enumerate((64, 64, 0)):
        pair = pair_of((32, 32))
        check.add(pair)
        case = Case(number, f"case {number}", path, path)
        cases.append(ReadCase(case, case.name, "i.png", "", (32, 32), pair.signature[:size], str(number)))
    assert check.finish(cases).duplicates is None
    assert [issue.code for issue in check.issues] == ["not_compared"]


def test_decoded_masks_of_other_codes_are_other_files(tmp_path: Path) -> None:
    check = DatasetCheck()
    for _ in range(2):
        check.add(pair_of((32, 32)))
    fingerprint = check._builders[2].result()
    plan = make_plan(TrainingRequest(), fingerprint, check.classes.rows({0, 1}), Machine(False, 2, False))
    one, other, plain = (
        Case(1, "a", Path("a.png"), Path("m.png"), key="k", codes=codes)
        for codes in ({"#ff0000": 1}, {"#00ff00": 1}, {})
    )
    assert len({stored_stem(tmp_path, case, plan) for case in (one, other, plain)}) == 3


def test_a_terminal_shows_all_errors_and_some_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar() as bar:
        for number in range(MAX_WARNINGS + 5):
            bar.issue(Issue("warning", "near_duplicate", f"w{number}", "It looks like another."))
            bar.issue(Issue("error", "no_mask", f"e{number}", "It has no mask."))
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("left out: e") for line in lines) == MAX_WARNINGS + 5
    assert sum(line.startswith("w") for line in lines) == MAX_WARNINGS
    assert lines.count("Further warnings of this kind are not shown.") == 1


def pair_with(channels: int, name: str, *, notices: tuple[Notice, ...] = ()) -> ReadPair:
    labels = np.eye(8, dtype=np.uint8)
    array = np.random.default_rng(channels).integers(0, 255, (channels, 8, 8)).astype(np.uint8)
    image = Image(array, None, None, "raster", None, None, Grid((8, 8)), notices=notices)
    mask = Mask(labels, "values", None, False, None, None)
    return ReadPair.of(image, mask, name, f"masks/{name}")


@pytest.mark.parametrize(("first", "other"), [(2, 4), (4, 2), (2, 1), (3, 4), (1, 5)])
def test_images_of_other_channels_than_those_before_are_left_out(first: int, other: int) -> None:
    check = DatasetCheck()
    check.add(pair_with(first, "a.tif"))
    check.add(pair_with(first, "b.tif"))
    with pytest.raises(ImageError, match=f"It has {other} channels, and the images before it have {first}") as caught:
        check.add(pair_with(other, "c.tif"))
    assert (caught.value.code, caught.value.file) == ("mixed_channels", "c.tif and masks/c.tif")
    # What joins an earlier version, or a test set, has to have its channels, even where it comes first.
    with pytest.raises(ImageError, match="channels"):
        DatasetCheck(dimensions=2, channels=first).add(pair_with(other, "a.tif"))


def test_grey_and_colour_mix() -> None:
    check = DatasetCheck()
    for number, channels in enumerate((1, 3, 3)):
        check.add(pair_with(channels, f"{number}.tif"))
    assert check.issues == []


def test_alpha_that_is_not_used_is_told() -> None:
    check = DatasetCheck()
    check.add(pair_with(3, "a.png", notices=(Notice("dropped_alpha", "Alpha is not read."),)))
    assert [(issue.code, issue.file) for issue in check.issues] == [("dropped_alpha", "a.png")]
