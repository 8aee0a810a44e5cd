"""Outages: storage, database or broker do not answer for a while, or a disk is full.

Work that meets one is tried again after a pause. A request that meets one is answered with 503 and the reason.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable
from typing import TypeVar

import redis
from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, IncompleteReadError
from django.conf import settings
from django.db import InterfaceError, OperationalError, connection
from kombu.exceptions import OperationalError as BrokerError

T = TypeVar("T")

PATIENCE_SECONDS = 90.0
MIN_FREE_BYTES = 2**20


def reason_of(error: BaseException) -> str | None:
    """One sentence for the user that names the outage. None for every other error, where trying again would not help."""
    seen: BaseException | None = error
    while seen is not None:
        if text := _reason(seen):
            return text
        seen = seen.__cause__ or seen.__context__
    return None


def _reason(error: BaseException) -> str | None:
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "The disk is full. Make room on the disk of MEDSEG_DATA_DIR."
    if isinstance(error, (OperationalError, InterfaceError)):
        if "disk is full" in str(error) or ("sqlite3" in _origin(error) and _is_disk_full()):
            return "The disk of the database is full. Make room there."
        return "The database does not answer."
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status in (401, 403):
            return "The object storage refuses the platform's keys. Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        return "The object storage answers with errors." if status >= 500 or status == 429 else None
    if isinstance(error, (ConnectionError, HTTPClientError, IncompleteReadError)):
        return "The object storage does not answer."
    if isinstance(error, redis.ResponseError) and str(error).startswith("MISCONF"):
        return "The broker cannot write, since its disk is full. Make room there."
    if isinstance(error, (redis.ConnectionError, redis.TimeoutError, BrokerError)):
        return "The broker does not answer."
    return None


def _origin(error: BaseException) -> str:
    """The module of the database driver's own error."""
    return type(error.__cause__).__module__


def _is_disk_full() -> bool:
    """Whether the disk has no room. SQLite reports that as an I/O error, or as a file that it cannot open."""
    return shutil.disk_usage(settings.DATA_DIR).free < MIN_FREE_BYTES


def patiently(work: Callable[[], T]) -> T:
    """Call `work` until the database answers, for PATIENCE_SECONDS at most."""
    deadline, pause = time.monotonic() + PATIENCE_SECONDS, 0.5
    while True:
        try:
            return work()
        except (OperationalError, InterfaceError):
            if time.monotonic() + pause > deadline or connection.in_atomic_block:
                raise
            connection.close()
            time.sleep(pause)
            pause = min(2 * pause, 10.0)
