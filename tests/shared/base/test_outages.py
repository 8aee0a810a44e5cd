"""What is away for a while costs no job and gives no 500."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from asgiref.testing import ApplicationCommunicator
from botocore.exceptions import ClientError, EndpointConnectionError
from django.core.handlers.asgi import ASGIHandler
from django.db import OperationalError
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.access import ProjectJobs
from datasets.check import check
from datasets.models import Dataset
from inference import prediction
from inference.models import InferenceResult
from medseg_site.asgi import application
from medseg_site.shared.base import outages
from medseg_site.shared.jobs import claim
from medseg_site.shared.storage import objects as storage
from tests.factories import DatasetFactory, InferenceFactory

pytestmark = pytest.mark.django_db

AWAY = EndpointConnectionError(endpoint_url="http://store")


def s3_error(status: int) -> ClientError:
    return ClientError({"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": "x"}}, "PutObject")


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (AWAY, "storage"),
        (s3_error(503), "storage"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (OperationalError("database is locked"), "database"),
        (OperationalError("database or disk is full"), "disk"),
        (redis.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"), "broker"),
    ],
)
def test_an_outage_is_named(error: Exception, word: str) -> None:
    assert word in str(outages.reason_of(error))
    outer = ValueError("of a library")
    outer.__cause__ = error
    assert outages.reason_of(outer) == outages.reason_of(error)


def test_other_errors_are_no_outage() -> None:
    for error in (s3_error(404), FileNotFoundError("x"), ValueError("x"), OSError(errno.EACCES, "x")):
        assert outages.reason_of(error) is None


def test_work_waits_for_what_is_away_and_fails_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*args: Any, **kwargs: Any) -> Any:
        raise AWAY

    monkeypatch.setattr(storage, "fetch", away)
    dataset = DatasetFactory.create(status="uploaded", checksum="0" * 64)
    pauses: list[int] = []
    while True:
        check(dataset.pk)
        dataset.refresh_from_db()
        if dataset.status == "error":
            break
        pauses.append(round((dataset.due_at - timezone.now()).total_seconds()))
        assert (dataset.status, dataset.claim_token, dataset.attempt) == ("uploaded", None, 0)
        assert dataset.timeline[-1]["event"] == "interrupted"
        type(dataset).objects.filter(pk=dataset.pk).update(due_at=timezone.now())  # the pause is over
    assert pauses == [5, 10, 20, 40, 80, 120, 120, 120]
    assert "storage does not answer" in str(dataset.error)
    assert len(pauses) == claim.MAX_INTERRUPTIONS

    inference = InferenceFactory.create()
    prediction.predict(inference.pk)
    row = InferenceResult.objects.get(pk=inference.pk)
    assert (row.status, row.interruptions, row.sent_at) == ("queued", 1, None)


def test_the_database_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(
        outages, "connection", type("Closed", (), {"in_atomic_block": False, "close": lambda self: None})()
    )
    answers: list[Exception | int] = [OperationalError("locked"), OperationalError("locked"), 7]

    def ask() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert outages.patiently(ask) == 7


def test_requests_are_answered_with_503_and_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(self: Any, user: Any) -> Any:
        raise OperationalError("could not connect to server")

    monkeypatch.setattr(ProjectJobs, "visible_to", away)
    answer = APIClient(raise_request_exception=False).get("/api/v1/datasets/")
    assert answer.status_code == 503
    assert answer.json()["errors"][0]["code"] == "unavailable"
    browser = Client(raise_request_exception=False)
    page = browser.get("/datasets/")
    assert page.status_code == 503
    assert "database does not answer" in page.content.decode()
    assert page["Retry-After"] == "15"
    assert Dataset.objects.count() == 0


@pytest.mark.parametrize(
    ("path", "content_type"), [("/api/v1/datasets/", "application/json"), ("/datasets/", "text/html")]
)
def test_a_body_that_the_disk_has_no_room_for_is_answered_with_503(
    path: str, content_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Django spools it before it asks anything of ours; /dev/full refuses every byte, as a full disk does."""
    monkeypatch.setattr(
        tempfile, "SpooledTemporaryFile", lambda **options: os.fdopen(os.open("/dev/full", os.O_RDWR), "r+b", 0)
    )

    async def ask() -> list[Any]:
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
        connection = ApplicationCommunicator(application, scope)
        await connection.send_input({"type": "http.request", "body": b"PK", "more_body": True})
        return [await connection.receive_output(), await connection.receive_output()]

    start, body = asyncio.run(ask())
    headers = dict(start["headers"])
    assert (start["status"], headers[b"retry-after"], headers[b"connection"]) == (503, b"15", b"close")
    assert headers[b"content-type"].decode().startswith(content_type)
    assert int(headers[b"content-length"]) == len(body["body"])
    assert "The disk is full. Make room on the disk of MEDSEG_DATA_DIR." in body["body"].decode()


def test_bodies_are_spooled_to_the_disk_of_the_data(settings: Any) -> None:
    body = asyncio.run(ASGIHandler().read_body(sent(bytes(settings.FILE_UPLOAD_MAX_MEMORY_SIZE + 1))))
    with body:
        (place,) = {Path(os.readlink(f"/proc/self/fd/{body.fileno()}")).parent}
    assert place == settings.TMP_DIR


def sent(content: bytes) -> Callable[[], Awaitable[dict[str, Any]]]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content}

    return receive
