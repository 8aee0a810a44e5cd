"""Whatever stands where a page, the API or a WebSocket takes a number: an answer, never a crash."""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import pytest
from asgiref.testing import ApplicationCommunicator
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import URLResolver, get_resolver, reverse
from drf_spectacular.generators import SchemaGenerator
from rest_framework.test import APIClient

from inference.models import InferenceResult
from medseg_site.asgi import application
from medseg_site.shared.base.text import MAX_WHOLE_NUMBER, whole_number
from medseg_site.shared.storage import objects as storage
from ml_core.planning.hyperparameters import specs
from models_app.models import SegmentationModel
from tests.environment import REPOSITORY
from tests.factories import (
    CompletedModelFactory,
    DatasetFactory,
    InferenceFactory,
    ModelFactory,
    SampleFactory,
    project_of,
)
from tests.pages import CLASSES, HTMX, batch
from tests.synthetic import write_png
from uploads.models import Upload

ARABIC_ONE = "\u0661"  # which int() takes for 1
NO_NUMBERS = ("²", ARABIC_ONE, "-1", "1e3", "9" * 20, "9" * 200, "9" * 5000, "")
# What a JSON document can say beside those texts.
NO_JSON_NUMBERS = ("-1", "1.5", "1e3", "1e400", "9" * 20, "9" * 5000, "null", "true", "[]", "{}")
# Query and form fields that the pages' views read themselves. The training form reads its own.
PAGE_FIELDS = {"dataset", "epochs", "issues", "leave_out", "model", "order", "page", "running", "time_budget_seconds"}

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("text", [*NO_NUMBERS, " 1", "1 ", "+1", "1_0", "0x1", "１"])  # noqa: RUF001 (a wide digit)
def test_other_texts_are_no_whole_number(text: str) -> None:
    assert whole_number(text) is None


def test_a_whole_number_lies_between_its_limits() -> None:
    assert [whole_number(text) for text in ("0", "007", str(MAX_WHOLE_NUMBER))] == [0, 7, MAX_WHOLE_NUMBER]
    assert whole_number(str(MAX_WHOLE_NUMBER + 1)) is None
    assert [whole_number(text, minimum=2, maximum=3) for text in "1234"] == [None, 2, 3, None]


@pytest.fixture
def ids() -> dict[str, Any]:
    """Path parameters that name rows."""
    dataset = DatasetFactory.create()
    sample = SampleFactory.create(dataset=dataset)
    model = CompletedModelFactory.create(dataset=dataset)
    # So that a request for a slice comes as far as its number.
    inference = InferenceFactory.create(model=model, input_image_s3_key="inferences/x/input.png")
    upload = Upload.objects.create(project=project_of(), purpose="dataset", file_name="a.zip", size=9, part_size=5)
    return {
        "dataset": dataset.pk,
        "sample_id": sample.pk,
        "model": model.pk,
        "inference": inference.pk,
        "inference-batche": batch(model=model).pk,
        "uuid": upload.uuid,
        "number": 1,
        "value": 255,
    }


def crashes(answers: Iterator[tuple[str, Any]]) -> list[str]:
    found = []
    for what, answer in answers:
        if answer.status_code >= 500:
            found.append(f"{what[:200]}: {answer.status_code}")
        answer.close()
    return found


# --- Pages ----------------------------------------------------------------------------------------------------------------
def page_routes(resolver: URLResolver, before: str = "") -> Iterator[str]:
    for pattern in resolver.url_patterns:
        route = before + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            if not route.startswith(("api/", "admin/")):
                yield from page_routes(pattern, route)
        elif "<" in route and not route.startswith("api/"):
            yield route


@pytest.mark.slow
def test_no_number_in_the_address_of_a_page(client: Client) -> None:
    client.raise_request_exception = False
    routes = list(page_routes(get_resolver()))
    assert len(routes) > 20

    def answers() -> Iterator[tuple[str, Any]]:
        for route in routes:
            for text in NO_NUMBERS:
                address = "/" + "".join(
                    quote(text) + part.partition(">")[2] if place else part
                    for place, part in enumerate(route.split("<"))
                )
                yield f"GET {address}", client.get(address)
                yield f"POST {address}", client.post(address)

    assert crashes(answers()) == []


def test_the_fields_that_pages_read_are_known() -> None:
    """A view that reads another field fails here until it stands in PAGE_FIELDS, and in the tests below if it is a number."""
    read = set()
    for path in (*REPOSITORY.glob("*/views.py"), REPOSITORY / "medseg_site/shared/web/pages.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("request.GET", "request.POST")):
                [name, *_] = node.args
                read |= {str(name.value)} if isinstance(name, ast.Constant) else {"epochs", "time_budget_seconds"}
    assert read == PAGE_FIELDS


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_no_number_in_a_field_of_a_page(client: Client, ids: dict[str, Any], text: str) -> None:
    client.raise_request_exception = False
    stopped = ModelFactory.create(status="cancelled")
    dataset = f"/datasets/{ids['dataset']}/"
    asked: list[tuple[str, dict[str, Any]]] = [
        (f"{page}?{urlencode({field: text})}", {})
        for page, field in [
            ("/datasets/", "page"),
            (dataset, "page"),
            (f"{dataset}versions/new/", "leave_out"),
            ("/models/", "page"),
            ("/models/new/", "dataset"),
            ("/inferences/", "page"),
            ("/inferences/new/", "model"),
            (f"/inferences/batches/{ids['inference-batche']}/", "page"),
            ("/admin/datasets/sample/", "dataset__id__exact"),
            ("/admin/datasets/sample/", "p"),
            (f"/admin/models_app/segmentationmodel/{quote(text)}/change/", "x"),
        ]
    ]
    asked.append((f"/?{urlencode({'running': f'model-{text}'})}", HTMX))
    numbers = {name: text for name, spec in specs().items() if spec.type is not str}
    sent = [
        ("/models/new/", {"name": "x", "dataset": text}),
        ("/models/new/", {"name": "x", "dataset": ids["dataset"], "warm_start": text}),
        ("/models/plan/", {"dataset": text, "warm_start": text}),
        (reverse("models_app:resume", args=[stopped.pk]), {"epochs": text, "time_budget_seconds": text}),
        (f"/inferences/{ids['inference']}/again/", {"model": text}),
        *((page, {"name": "x", "dataset": ids["dataset"], **numbers}) for page in ("/models/new/", "/models/plan/")),
    ]

    def answers() -> Iterator[tuple[str, Any]]:
        for address, headers in asked:
            yield address, client.get(address, **headers)
        for address, fields in sent:
            yield f"POST {address} {fields}", client.post(address, fields)

    assert crashes(answers()) == []


def test_the_training_form_of_no_dataset_is_shown(client: Client) -> None:
    """ "²" is a digit that is no number."""
    DatasetFactory.create()
    assert client.get("/models/new/?dataset=²").status_code == 200


# --- The API --------------------------------------------------------------------------------------------------------------
def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    schema: Any = SchemaGenerator().get_schema(request=None, public=True)
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield method, path, {**operation, "components": schema["components"]["schemas"]}


def filled(path: str, ids: dict[str, Any]) -> str:
    """The address with the rows that there are."""
    own = path.removeprefix("/api/v1/").partition("s/")[0]
    return path.format(**{**ids, "id": ids.get(own, ids["dataset"])})


@pytest.fixture
def careful_api() -> APIClient:
    return APIClient(raise_request_exception=False)


def test_no_number_in_an_address_of_the_api(careful_api: APIClient, ids: dict[str, Any]) -> None:
    def answers() -> Iterator[tuple[str, Any]]:
        for method, path, operation in operations():
            names = [given["name"] for given in operation.get("parameters", []) if given["in"] == "path"]
            for name in names:
                for text in NO_NUMBERS:
                    address = filled(path.replace(f"{{{name}}}", quote(text)), ids)
                    yield f"{method} {address}", careful_api.generic(method.upper(), address)

    assert crashes(answers()) == []
    assert careful_api.get(f"/api/v1/datasets/{quote(ARABIC_ONE)}/").status_code == 404


@pytest.mark.slow
def test_no_number_in_a_query_of_the_api(careful_api: APIClient, ids: dict[str, Any], tmp_path: Path) -> None:
    _store_inference(ids["inference"], tmp_path)
    names = set()

    def answers() -> Iterator[tuple[str, Any]]:
        for method, path, operation in operations():
            for given in operation.get("parameters", []):
                if given["in"] == "query" and given["schema"]["type"] in ("integer", "number"):
                    names.add(given["name"])
                    for text in NO_NUMBERS:
                        address = f"{filled(path, ids)}?{urlencode({given['name']: text})}"
                        yield f"{method} {address}", careful_api.generic(method.upper(), address)

    assert crashes(answers()) == []
    assert names == {"batch", "dataset", "model", "opacity", "page", "page_size", "slice"}
    address = f"/api/v1/inferences/{ids['inference']}/overlay/"
    assert careful_api.get(address).status_code == 200
    assert careful_api.get(f"{address}?slice=²").json()["errors"][0]["code"] == "invalid_slice"


def _store_inference(pk: int, folder: Path) -> None:
    key = "inferences/x/input.png"
    storage.store_bytes(key, write_png(folder / "drawn.png", np.zeros((8, 9), np.uint8)).read_bytes())
    InferenceResult.objects.filter(pk=pk).update(
        output_image_s3_key=key, output_sha256="0" * 64, shape=[8, 9], classes=CLASSES, input_image_s3_key=key
    )


def numbers_in(
    schema: dict[str, Any], components: dict[str, Any], at: tuple[Any, ...] = ()
) -> Iterator[tuple[Any, ...]]:
    """The places in a document at which a schema wants a number."""
    if reference := schema.get("$ref"):
        schema = components[reference.rpartition("/")[2]]
    if any(kind.get("type") in ("integer", "number") for kind in (schema, *schema.get("oneOf", []))):
        yield at
    for name, inner in schema.get("properties", {}).items():
        yield from numbers_in(inner, components, (*at, name))
    if "items" in schema:
        yield from numbers_in(schema["items"], components, (*at, 0))


def document_with(base: dict[str, Any], place: tuple[Any, ...], literal: str) -> str:
    """`base` as JSON, with `literal` at a place."""
    value: Any = "THE PLACE"
    for step in reversed(place[1:]):
        value = [value] if step == 0 else {step: value, "ETag": "x"}
    return json.dumps({**base, place[0]: value}).replace('"THE PLACE"', literal)


@pytest.mark.slow
def test_no_number_in_a_document_for_the_api(careful_api: APIClient, ids: dict[str, Any]) -> None:
    ids["model"] = ModelFactory.create(status="cancelled").pk
    base = {"name": "x", "dataset": ids["dataset"], "file_name": "a.zip", "size": 9, "purpose": "dataset"}
    bodies = {path: {"part_numbers": [1]} if path.endswith("sign/") else base for _, path, _ in operations()}
    bodies["/api/v1/models/{id}/resume/"] = bodies["/api/v1/uploads/{uuid}/complete/"] = {}
    bodies["/api/v1/inference-batches/"] = {"upload": str(ids["uuid"])}
    places: dict[str, set[tuple[Any, ...]]] = {}

    def answers() -> Iterator[tuple[str, Any]]:
        for method, path, operation in operations():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content is None:
                continue
            for place in numbers_in(content["schema"], operation["components"]):
                places.setdefault(path, set()).add(place)
                for literal in (*NO_JSON_NUMBERS, *(json.dumps(text) for text in NO_NUMBERS)):
                    body = document_with(bodies[path], place, literal)
                    address = filled(path, ids)
                    what = f"{method} {address} {body}"
                    yield what, careful_api.generic(method.upper(), address, body, content_type="application/json")

    assert crashes(answers()) == []
    assert ("dataset",) in places["/api/v1/models/"]
    assert ("hyperparameters", "epochs") in places["/api/v1/models/"]
    assert ("parts", 0, "PartNumber") in places["/api/v1/uploads/{uuid}/complete/"]
    assert ("part_numbers", 0) in places["/api/v1/uploads/{uuid}/sign/"]
    assert ("model",) in places["/api/v1/inference-batches/"]


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_no_number_in_a_form_or_header_for_the_api(
    careful_api: APIClient, ids: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medseg_site.shared.web.api.MAX_WAIT_SECONDS", 0.1)

    def file() -> SimpleUploadedFile:
        return SimpleUploadedFile("a.png", b"x")

    key = storage.object_key("models", SegmentationModel.objects.get(pk=ids["model"]).uuid, "model.zip")
    storage.store_bytes(key, b"0123456789")
    SegmentationModel.objects.filter(pk=ids["model"]).update(s3_key=key)
    package = f"/api/v1/models/{ids['model']}/download/"
    part = f"/api/v1/uploads/{ids['uuid']}/parts/1/"

    def answers() -> Iterator[tuple[str, Any]]:
        yield "inference", careful_api.post("/api/v1/inferences/", {"model": text, "image": file()}, format="multipart")
        yield (
            "batch",
            careful_api.post("/api/v1/inference-batches/", {"model": text, "archive": file()}, format="multipart"),
        )
        yield "training", careful_api.post("/api/v1/models/", {"name": "x", "dataset": text}, format="multipart")
        yield "resume", careful_api.post(f"/api/v1/models/{ids['model']}/resume/", {"epochs": text}, format="multipart")
        wait = {"Prefer": f"wait={text}"}
        address = {"name": "x", "source_url": "http://x.org/"}
        yield "wait", careful_api.post("/api/v1/datasets/", address, format="json", headers=wait)
        for asked in (f"bytes={text}-", f"bytes=-{text}", f"bytes=0-{text}"):
            yield asked, careful_api.get(package, headers={"Range": asked})
        yield (
            "part",
            careful_api.generic("PUT", part, "12345", "application/octet-stream", headers={"Content-Length": text}),
        )

    assert crashes(answers()) == []


# --- Before Django --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("digits", [20, 200])
def test_no_number_of_a_model_in_the_address_of_a_websocket(digits: int) -> None:
    async def answer() -> list[str]:
        scope = {"type": "websocket", "path": f"/ws/models/{'9' * digits}/", "headers": [], "query_string": b""}
        connection = ApplicationCommunicator(application, scope)
        await connection.send_input({"type": "websocket.connect"})
        return [str((await connection.receive_output(10))["type"]) for _ in range(2)]

    assert asyncio.run(answer()) == ["websocket.accept", "websocket.close"]


@pytest.mark.parametrize("length", ["9" * 20, "9" * 5000])
def test_a_body_of_any_declared_length_is_refused_before_it_comes(length: str) -> None:
    async def answer() -> int:
        headers = [(b"content-length", length.encode())]
        scope = {"type": "http", "method": "POST", "path": "/api/v1/datasets/", "headers": headers, "query_string": b""}
        connection = ApplicationCommunicator(application, scope)
        await connection.send_input({"type": "http.request", "body": b"", "more_body": True})
        return int((await connection.receive_output(10))["status"])

    assert asyncio.run(answer()) == 413
