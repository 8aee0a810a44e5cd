"""Events of jobs, sent through Redis to WebSockets and to requests that wait.

The rows hold the truth. While Redis is down, pages are less lively, and no job is lost.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import redis
from channels_redis.serializers import registry
from django.conf import settings

log = logging.getLogger(__name__)


@functools.cache
def redis_client() -> redis.Redis:
    return redis.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=2, health_check_interval=30)


@functools.cache
def _message_format() -> Any:
    return registry.get_serializer("msgpack")


def group_name(kind: str, pk: int) -> str:
    return f"{kind}-{pk}"


def publish(kind: str, pk: int, message: dict[str, Any]) -> None:
    """Send `message` to everyone who watches this row.

    It does what the channel layer's `group_send` does, without an event loop and a connection for each message.
    """
    try:
        event = _message_format().serialize({"type": "job.event", "message": message})
        redis_client().publish(f"asgi__group__{group_name(kind, pk)}", event)
    except Exception as error:
        log.warning("no live event for %s %s: %s", kind, pk, error)


def _done_key(kind: str, pk: int) -> str:
    return f"done:{kind}:{pk}"


def wake_waiting(kind: str, pk: int) -> None:
    """Wake the requests that wait for the end of this row."""
    try:
        pipe = redis_client().pipeline()
        pipe.rpush(_done_key(kind, pk), *[b"1"] * 16)
        pipe.expire(_done_key(kind, pk), 60)
        pipe.execute()
    except redis.RedisError as error:
        log.warning("cannot wake who waits for %s %s: %s", kind, pk, error)


def wait_a_moment(kind: str, pk: int, seconds: float) -> None:
    """Sleep until `wake_waiting` is called for this row or `seconds` have passed."""
    try:
        redis_client().blpop([_done_key(kind, pk)], timeout=max(0.01, seconds))
    except redis.RedisError:
        import time

        time.sleep(min(0.2, seconds))
