"""Texts that count things."""

from __future__ import annotations

import pytest
from django.template import Context, Template

from medseg_site.shared.base.text import count_of


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
