"""Names that users give."""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath

from medseg_site.shared.base.errors import MedSegError


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
