"""Limits how many requests are worked on at once.

Under ASGI each request has a thread and a database connection of its own. Hundreds at once are slower than the same requests
a few at a time, and on SQLite they wait for each other's locks until one gives up. The others wait for their turn; their
bodies have been received. A request that would wait too long is told when to come again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.conf import settings
from django.db import connection
from django.http import HttpRequest, HttpResponseBase, JsonResponse

# By then a client has given up, or asks again.
MAX_WAIT_SECONDS = 30.0
MAX_WAITING = 2_000  # threads
RETRY_AFTER_SECONDS = 5
NEVER_WAIT = {"/healthz", "/readyz"}


class Gate:
    """First come, first served: a free place goes to the request that has waited longest."""

    def __init__(self, places: int, longest_wait: float = MAX_WAIT_SECONDS, most_waiting: int = MAX_WAITING) -> None:
        self._free, self._longest_wait, self._most_waiting = places, longest_wait, most_waiting
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()
        self._mine = threading.local()

    def enter(self) -> bool:
        """Take a place. False where none becomes free in time."""
        with self._lock:
            if self._free and not self._waiting:
                self._free -= 1
                self._mine.place = True
                return True
            if len(self._waiting) >= self._most_waiting:
                return False
            turn = threading.Event()
            self._waiting.append(turn)
        turn.wait(self._longest_wait)
        with self._lock:
            if not turn.is_set():
                self._waiting.remove(turn)
            self._mine.place = turn.is_set()
        return turn.is_set()

    def leave(self) -> None:
        self._mine.place = False
        self._hand_over()

    def _hand_over(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1

    @contextmanager
    def left_meanwhile(self) -> Iterator[None]:
        """Give up place and database connection during a wait for something that other requests or workers do."""
        if not getattr(self._mine, "place", False):
            yield
            return
        if not connection.in_atomic_block:
            connection.close()
        self._hand_over()
        try:
            yield
        finally:
            self._come_back()

    def _come_back(self) -> None:
        """Take a place before all others, however long it takes: this request has its answer and is not sent away any more."""
        with self._lock:
            if self._free:
                self._free -= 1
                return
            turn = threading.Event()
            self._waiting.appendleft(turn)
        turn.wait()


gate = Gate(settings.MEDSEG_REQUESTS_AT_ONCE)


class GateMiddleware:
    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.path in NEVER_WAIT:
            return self.get_response(request)
        if not gate.enter():
            return _refusal()
        try:
            return self.get_response(request)
        finally:
            gate.leave()


def _refusal() -> JsonResponse:
    detail = f"The platform has more requests than it can answer now. Ask again in {RETRY_AFTER_SECONDS} seconds."
    error = {"code": "throttled", "detail": detail, "attr": None}
    answer = JsonResponse({"type": "client_error", "errors": [error]}, status=429)
    answer["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return answer
