"""Texts that users give (names, numbers as digits), and texts that count things."""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath

from medseg_site.shared.base.errors import MedSegError

MAX_WHOLE_NUMBER = 2**63 - 1  # of the database's largest column of numbers


def clean_name(name: str, *, maximum: int = 200) -> str:
    """A name without control characters and outer blanks. Raises MedSegError when nothing is left or it is too long."""
    cleaned = "".join(char for char in name if unicodedata.category(char)[0] != "C").strip()
    if not cleaned:
        raise MedSegError("blank", "A name is needed.", attr="name")
    if len(cleaned) > maximum:
        raise MedSegError("too_long", f"The name is longer than {maximum} characters.", attr="name")
    return cleaned


def clean_file_name(name: str | None) -> str:
    """The last part of a user's file name, fit to be shown and stored in a column (never used as a path)."""
    last = PurePosixPath((name or "").replace("\\", "/")).name
    cleaned = "".join(char for char in last if unicodedata.category(char)[0] != "C").strip()
    return cleaned[-200:] or "unnamed"


def clean_path(name: str, *, maximum: int = 300) -> str:
    """The path of a file inside an archive, fit to be shown and stored in a column. A long one loses its beginning."""
    parts = ["".join(char for char in part if unicodedata.category(char)[0] != "C") for part in name.split("/")]
    path = "/".join(part for part in parts if part.strip() not in ("", ".", "..")) or "unnamed"
    return path if len(path) <= maximum else "…" + path[1 - maximum :]


def whole_number(text: str, *, minimum: int = 0, maximum: int = MAX_WHOLE_NUMBER) -> int | None:
    """The number that ASCII digits say; None for every other text, and for a number outside of the limits.

    `isdigit` alone is true of "²", which `int` refuses, and `int` refuses texts of more than 4,300 digits too.
    """
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(MAX_WHOLE_NUMBER)):
        return None
    number = int(text)
    return number if minimum <= number <= maximum else None


def count_of(number: int, one: str, many: str = "") -> str:
    """Such as "1 image", "3 images" or "12,000 images". `many`: the plural, where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
