"""A bounded number of requests at once; the others wait, and are sent away before they wait for ever."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.http import HttpRequest, HttpResponse, HttpResponseBase

from medseg_site.shared.web import gate as module
from medseg_site.shared.web.gate import Gate, GateMiddleware


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate(2, longest_wait=1.0, most_waiting=3)
    monkeypatch.setattr(module, "gate", gate)
    return gate


def ask(answer: GateMiddleware, path: str = "/") -> HttpResponseBase:
    request = HttpRequest()
    request.path = path
    return answer(request)


def test_two_at_once_and_all_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gate", Gate(2))
    now, most, lock = [0], [0], threading.Lock()

    def view(request: HttpRequest) -> HttpResponse:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return HttpResponse()

    with ThreadPoolExecutor(5) as pool:
        codes = [answer.status_code for answer in pool.map(lambda _: ask(GateMiddleware(view)), range(20))]
    assert codes == [200] * 20
    assert most == [2]


def test_who_would_wait_too_long_is_told_when_to_come_again(small: Gate) -> None:
    free = threading.Event()

    def stuck(request: HttpRequest) -> HttpResponse:
        free.wait(60)
        return HttpResponse()

    with ThreadPoolExecutor(8) as pool:
        first = [pool.submit(ask, GateMiddleware(stuck)) for _ in range(2)]
        time.sleep(0.1)
        started = time.monotonic()
        late = [pool.submit(ask, GateMiddleware(stuck)) for _ in range(4)]
        codes = [future.result().status_code for future in late]
        assert codes == [429] * 4
        assert 0.2 < time.monotonic() - started < 60
        assert ask(GateMiddleware(lambda request: HttpResponse()), "/healthz").status_code == 200
        refused = late[0].result()
        assert refused.headers["Retry-After"] == "5"
        free.set()
        assert [future.result().status_code for future in first] == [200, 200]
    assert ask(GateMiddleware(stuck)).status_code == 200, "every place was given back"


def test_who_waits_for_work_elsewhere_holds_no_place(small: Gate) -> None:
    other_was_answered = threading.Event()

    def waits(request: HttpRequest) -> HttpResponse:
        with small.left_meanwhile():
            assert other_was_answered.wait(60)
        return HttpResponse()

    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(ask, GateMiddleware(waits)) for _ in range(2)]
        time.sleep(0.1)
        assert ask(GateMiddleware(lambda request: HttpResponse())).status_code == 200
        other_was_answered.set()
        assert [future.result().status_code for future in waiting] == [200, 200]
    with small.left_meanwhile():  # outside a request: nothing to leave
        pass


def test_an_error_gives_its_place_back(small: Gate) -> None:
    def broken(request: HttpRequest) -> HttpResponse:
        raise RuntimeError

    for _ in range(5):
        with pytest.raises(RuntimeError):
            ask(GateMiddleware(broken))
