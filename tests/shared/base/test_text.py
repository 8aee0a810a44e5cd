"""Texts that count things, and paths of files as users see them."""

from __future__ import annotations

import pytest
from django.template import Context, Template

from medseg_site.shared.base.text import clean_path, count_of


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (12_000, "image", "12,000 images"),
        (1, "entry,entries", "1 entry"),
        (2, "entry,entries", "2 entries"),
    ],
)
def test_one_thing_has_no_plural(number: int, words: str, text: str) -> None:
    assert count_of(number, *words.split(",")) == text
    template = Template(f'{{% load medseg_ui %}}{{{{ number|count_of:"{words}" }}}}')
    assert template.render(Context({"number": number})) == text


def test_a_path_of_an_archive_keeps_its_folders_and_its_end() -> None:
    assert clean_path("day.1/scan 01 é.png") == "day.1/scan 01 é.png"
    assert clean_path("/a//./b/../c\x07.png") == "a/b/c.png"
    assert clean_path("..") == "unnamed"
    assert clean_path("x" * 400 + "/a.png") == "…" + "x" * 293 + "/a.png"
    assert len(clean_path("y" * 301)) == 300
