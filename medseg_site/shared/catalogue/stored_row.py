"""What the catalogue needs of a row that owns objects. The job rows of every app have it; no app is imported here."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar, Protocol


class StoredRow(Protocol):
    """A database row with a prefix of its own in storage: `<collection>/<uuid>/`."""

    WORDS: ClassVar[Any]
    KIND: ClassVar[str]
    uuid: uuid.UUID
    pk: Any
    status: str
    attempt: int
    _meta: ClassVar[Any]
    _default_manager: Any

    @property
    def is_active(self) -> bool: ...
    @property
    def is_working(self) -> bool: ...
