"""Requests that leave something out are done, or refused with the reason; none is taken for another one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from rest_framework.test import APIClient

from datasets.models import Dataset
from medseg_site.asgi import application
from medseg_site.shared.storage import objects as storage
from models_app.models import SegmentationModel
from tests.factories import CompletedModelFactory, DatasetFactory
from tests.shared.conftest import zipped

pytestmark = pytest.mark.django_db


def test_an_upload_without_the_slash_at_the_end_is_an_upload(api: APIClient) -> None:
    archive = zipped({"images/a.png": b"a"})
    answer = api.post("/api/v1/datasets", {"name": "cells", "archive": archive}, format="multipart")
    assert answer.status_code == 202
    assert Dataset.objects.get().name == "cells"
    assert api.delete(f"/api/v1/datasets/{answer.json()['id']}").status_code in (204, 409)


def test_a_page_that_is_asked_for_without_the_slash_is_redirected(api: APIClient) -> None:
    answer = api.get("/api/v1/datasets")
    assert (answer.status_code, answer["Location"]) == (301, "/api/v1/datasets/")
    answer = api.post("/api/v1/nothing")
    assert answer.status_code == 404
    # As every error of the API; a page of the site is a page.
    assert answer.json()["errors"][0]["code"] == "not_found"
    assert api.get("/nothing/")["Content-Type"].startswith("text/html")


@pytest.mark.parametrize("accept", ["application/zip", "image/png", "text/html", "application/json", "*/*"])
def test_a_download_comes_whatever_type_is_accepted(api: APIClient, accept: str) -> None:
    model = CompletedModelFactory.create()
    storage.store_bytes(model.s3_key, b"package")
    answer = api.get(f"/api/v1/models/{model.pk}/download/", headers={"Accept": accept})
    assert answer.status_code == 200
    assert b"".join(answer.streaming_content) == b"package"  # type: ignore[attr-defined]  # always of a file
    assert api.get("/api/v1/models/", headers={"Accept": accept}).json()["count"] == 1


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"hyperparameters": '{"epochs": 1, "architecture": "unet"}'}, {"epochs": 1, "architecture": "unet"}),
        (
            {"hyperparameters.epochs": "1", "hyperparameters.architecture": "unet"},
            {"epochs": 1, "architecture": "unet"},
        ),
        ({"hyperparameters": "{}"}, {}),
        ({}, {}),
    ],
)
@pytest.mark.parametrize("form", ["multipart", None])
def test_hyperparameters_in_a_form_are_read(api: APIClient, form: str | None, fields: Any, asked: Any) -> None:
    wanted = {"name": "net", "dataset": DatasetFactory.create().pk, **fields}
    if form:
        answer = api.post("/api/v1/models/", wanted, format=form)
    else:
        body = "&".join(f"{name}={value}" for name, value in wanted.items())
        answer = api.post("/api/v1/models/", body, content_type="application/x-www-form-urlencoded")
    assert answer.status_code == 202, answer.content
    assert SegmentationModel.objects.get().requested == asked


@pytest.mark.parametrize("text", ["complete nonsense", "[1]", "1", "null", "[" * 100_000, '{"epochs": "many"}', "{"])
def test_hyperparameters_that_cannot_be_read_are_refused(api: APIClient, text: str) -> None:
    wanted = {"name": "net", "dataset": DatasetFactory.create().pk, "hyperparameters": text}
    answer = api.post("/api/v1/models/", wanted, format="multipart")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["attr"].startswith("hyperparameters")
    assert not SegmentationModel.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_body_that_is_sent_in_chunks_is_read() -> None:
    body = json.dumps({"dataset": DatasetFactory.create().pk}).encode()
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/api/v1/models/plan/",
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"transfer-encoding", b"chunked"),
        ],
        "client": ("127.0.0.1", 1),
    }

    async def ask() -> tuple[int, Any]:
        client = ApplicationCommunicator(application, scope)
        for start in range(0, len(body), 5):
            await client.send_input(
                {"type": "http.request", "body": body[start : start + 5], "more_body": start + 5 < len(body)}
            )
        begun = await client.receive_output(timeout=20)
        return begun["status"], json.loads((await client.receive_output(timeout=20))["body"])

    status, answer = asyncio.run(ask())
    assert status == 200, answer
    assert answer["hyperparameters"]["architecture"]
