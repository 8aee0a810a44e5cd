"""What the tests of jobs share."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import transaction

from medseg_site.shared.jobs import messages


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the rows whose messages are sent, in order. Here every change counts as committed at once."""
    numbers: list[int] = []
    monkeypatch.setattr(messages, "call", lambda task, pk: numbers.append(pk))

    def at_once(work: Any, using: Any = None, robust: bool = False) -> None:
        work()

    monkeypatch.setattr(transaction, "on_commit", at_once)
    return numbers
