"""The layout of the templates that djade leaves alone, as law."""

from __future__ import annotations

from tests.environment import REPOSITORY

MAX_LINE_CHARACTERS = 160


def test_template_lines_stay_short() -> None:
    templates = sorted((REPOSITORY / "templates").rglob("*.html"))
    assert len(templates) > 50
    long = {
        f"{path.relative_to(REPOSITORY)}:{number}": len(line)
        for path in templates
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > MAX_LINE_CHARACTERS
    }
    assert long == {}
