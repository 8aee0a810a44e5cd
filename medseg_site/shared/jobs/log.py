"""The timeline of a job, and the last lines that its workers logged. Both are for people; no code decides by them."""

from __future__ import annotations

import logging
import os
import socket
import traceback
from collections import deque
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone

MAX_EVENTS = 100
MAX_LINES = 1_000
# A longer line is cut.
MAX_CHARACTERS = 500
# Loggers of libraries. Their lines do not help a user.
NOT_OURS = ("amqp", "asyncio", "botocore", "celery", "channels", "django", "kombu", "redis", "s3transfer", "urllib3")


def worker_name() -> str:
    """Return the name of this machine and the number of this process."""
    return f"{socket.gethostname()} ({os.getpid()})"


def timeline_entry(event: str, **facts: Any) -> dict[str, Any]:
    return {"at": timezone.now().isoformat(), "event": event, **{name: value for name, value in facts.items() if value}}


def first_timeline() -> list[dict[str, Any]]:
    return [timeline_entry("queued")]


def add_to_timeline(rows: QuerySet[Any], event: str, **facts: Any) -> None:
    """Append an event to the timeline of one row.

    Call it in a transaction that has written the row. The transaction then holds the row's lock, so no event is lost.
    """
    timeline = rows.values_list("timeline", flat=True).first()
    if timeline is not None:
        rows.update(timeline=[*timeline, timeline_entry(event, **facts)][-MAX_EVENTS:])


class JobLog(logging.Handler):
    """Collects the lines that this process logs while it works on a row. A process works on one row at a time."""

    def __init__(self, earlier: str) -> None:
        super().__init__(logging.INFO)
        self.lines: deque[str] = deque(earlier.splitlines(), maxlen=MAX_LINES)
        self.changed = False

    def attach(self) -> None:
        root = logging.getLogger()
        for handler in root.handlers[:]:
            # The handler is left from a row whose claim was lost.
            if isinstance(handler, JobLog):
                root.removeHandler(handler)
        root.addHandler(self)

    def detach(self) -> None:
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.split(".", 1)[0] not in NOT_OURS:
            self.add(record.getMessage(), record.levelname)
            if record.exc_info and record.exc_info[0]:
                for line in "".join(traceback.format_exception(*record.exc_info)).splitlines():
                    self.add(line, record.levelname)

    def add(self, text: str, level: str = "INFO") -> None:
        at = timezone.now().strftime("%Y-%m-%d %H:%M:%S")
        # Postgres takes no NUL character in a text.
        lines = text.replace("\0", "").splitlines() or [""]
        self.lines.extend(f"{at} {level:<7} {line[:MAX_CHARACTERS]}" for line in lines)
        self.changed = True

    def text(self) -> str:
        self.changed = False
        return "\n".join(self.lines.copy())
