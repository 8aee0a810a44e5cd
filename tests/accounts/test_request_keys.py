"""A POST that is sent again with its Idempotency-Key gets the first answer and does nothing twice."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import OperationalError, connection
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.models import RequestKey
from accounts.tasks import forget_request_keys
from datasets.models import Dataset
from inference import services as inferences
from models_app import services
from models_app.models import SegmentationModel
from tests.accounts.changes import archive, picture
from tests.factories import CompletedModelFactory, DatasetFactory, ModelFactory
from uploads.models import Upload

pytestmark = pytest.mark.django_db

KEY = "3f1c9a"
MODELS = "/api/v1/models/"


def send(api: APIClient, path: str, body: Any, key: str = KEY, **more: Any) -> Any:
    return api.post(path, body, HTTP_IDEMPOTENCY_KEY=key, **more)


def is_replay(answer: Any) -> bool:
    return bool(answer.get("Idempotent-Replay") == "true")


def told(answer: Any) -> tuple[int, bytes, str | None]:
    return answer.status_code, answer.content, answer.get("Location")


def refusal(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["errors"][0]["code"]


def test_the_same_request_gets_the_first_answer_again(api: APIClient) -> None:
    body = {"name": "cells", "dataset": DatasetFactory.create().pk, "hyperparameters": {"epochs": 3}}
    first = send(api, MODELS, body)
    assert (first.status_code, is_replay(first)) == (202, False)
    SegmentationModel.objects.update(name="another name by now")
    second = send(api, MODELS, dict(reversed(body.items())))
    assert told(second) == told(first)
    assert (is_replay(second), second["Content-Type"]) == (True, "application/json")
    assert SegmentationModel.objects.count() == 1
    assert not is_replay(send(api, MODELS, body, key="another"))
    assert not is_replay(api.post(MODELS, body))
    assert SegmentationModel.objects.count() == 3


def form(**other: Any) -> dict[str, Any]:
    return {"name": "cells", "archive": archive(), **other}


def test_the_same_file_is_the_same_request(api: APIClient) -> None:
    first = send(api, "/api/v1/datasets/", form(), format="multipart")
    assert first.status_code == 202, first.content
    second = send(api, "/api/v1/datasets/", form(), format="multipart")
    assert (told(second), is_replay(second)) == (told(first), True)
    row = Dataset.objects.get()
    assert (row.archive_name, row.checksum) == ("a.zip", first.json()["checksum"])


@pytest.mark.parametrize(
    "other",
    [
        {"name": "other"},
        {"description": "one more field"},
        {"archive": SimpleUploadedFile("b.zip", archive().read())},
        {"archive": SimpleUploadedFile("a.zip", b"PK\x05\x06" + bytes(17) + b"\x01")},
        {"archive": SimpleUploadedFile("a.zip", archive().read() + b"\0")},
    ],
    ids=["field", "more", "file name", "content", "size"],
)
def test_another_body_with_the_same_key_is_a_conflict(api: APIClient, other: dict[str, Any]) -> None:
    first = send(api, "/api/v1/datasets/", form(), format="multipart")
    assert refusal(send(api, "/api/v1/datasets/", form(**other), format="multipart")) == (409, "key_used")
    assert told(send(api, "/api/v1/datasets/", form(), format="multipart")) == told(first)
    assert Dataset.objects.count() == 1


def test_another_address_with_the_same_key_is_a_conflict(api: APIClient) -> None:
    one, two = ModelFactory.create(), ModelFactory.create()
    assert send(api, f"{MODELS}{one.pk}/cancel/", {}).status_code == 202
    assert is_replay(send(api, f"{MODELS}{one.pk}/cancel/", {}))
    assert refusal(send(api, f"{MODELS}{two.pk}/cancel/", {})) == (409, "key_used")
    two.refresh_from_db()
    assert two.status == "queued"


def test_refusals_are_answers_too(api: APIClient) -> None:
    body = {"name": "cells", "dataset": DatasetFactory.create(status="uploaded").pk}
    first = send(api, MODELS, body)
    assert refusal(first) == (409, "wrong_state")
    Dataset.objects.all().delete()
    second = send(api, MODELS, body)
    assert (told(second), is_replay(second)) == (told(first), True)


def test_what_failed_on_our_side_is_done_at_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    api = APIClient(raise_request_exception=False)
    body = {"name": "cells", "dataset": DatasetFactory.create().pk}
    for error in (OperationalError("could not connect to server"), RuntimeError("a mistake of ours")):
        with monkeypatch.context() as patched:

            def fail(error: Exception = error, **given: Any) -> None:
                raise error

            patched.setattr(services, "create_model", fail)
            assert send(api, MODELS, body).status_code in {500, 503}
        assert not RequestKey.objects.exists()
    assert send(api, MODELS, body).status_code == 202


def test_keys_of_two_users_are_two(settings: Any) -> None:
    settings.MEDSEG_SINGLE_USER = False
    for name in ("anna", "bert"):
        user, api = User.objects.create_user(name), APIClient()
        api.force_authenticate(user)
        body = {"file_name": "a.zip", "size": 9, "purpose": "dataset"}
        assert not is_replay(send(api, "/api/v1/uploads/", body))
        assert is_replay(send(api, "/api/v1/uploads/", body))
    assert Upload.objects.count() == 2


def test_nobodys_request_takes_no_key(settings: Any) -> None:
    settings.MEDSEG_SINGLE_USER = False
    assert send(APIClient(), MODELS, {}).status_code == 401
    assert not RequestKey.objects.exists()


@pytest.mark.parametrize("key", ["", "k" * 201, "tab\there", "schlüssel"])
def test_a_key_is_short_and_plain(api: APIClient, key: str) -> None:
    answer = send(api, MODELS, {}, key=key)
    assert refusal(answer) == (400, "invalid_key")
    assert not RequestKey.objects.exists()


def test_a_key_is_forgotten_after_a_day(api: APIClient) -> None:
    body = {"name": "cells", "dataset": DatasetFactory.create().pk}
    send(api, MODELS, body)
    RequestKey.objects.update(created_at=timezone.now() - timedelta(hours=23, minutes=59))
    forget_request_keys()
    assert is_replay(send(api, MODELS, body))
    RequestKey.objects.update(created_at=timezone.now() - timedelta(hours=24, minutes=1))
    assert not is_replay(send(api, MODELS, {**body, "name": "may be another request by now"}))
    RequestKey.objects.update(created_at=timezone.now() - timedelta(hours=24, minutes=1))
    forget_request_keys()
    assert not RequestKey.objects.exists()


def test_the_key_of_a_process_that_died_is_given_away_after_ten_minutes(api: APIClient) -> None:
    body = {"name": "cells", "dataset": DatasetFactory.create().pk}
    send(api, MODELS, body)
    for minutes, expected in ((9, (409, "in_progress")), (11, None)):
        RequestKey.objects.update(status_code=None, created_at=timezone.now() - timedelta(minutes=minutes))
        answer = send(api, MODELS, body)
        assert answer.status_code == 202 if expected is None else refusal(answer) == expected
    assert SegmentationModel.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_of_two_at_once_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CompletedModelFactory.create()
    create, entered, go_on = inferences.create_inference, threading.Event(), threading.Event()

    def slowly(**given: Any) -> Any:
        entered.set()
        assert go_on.wait(20)
        return create(**given)

    monkeypatch.setattr(inferences, "create_inference", slowly)

    def ask() -> Any:
        try:
            return send(APIClient(), "/api/v1/inferences/", {"model": model.pk, "image": picture()}, format="multipart")
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask)
        assert entered.wait(20)
        second = pool.submit(ask).result(20)
        go_on.set()
        answer = first.result(20)
    assert refusal(second) == (409, "in_progress")
    assert "Send it again in a moment" in second.json()["errors"][0]["detail"]
    assert answer.status_code == 202
    assert model.inferences.count() == 1
    assert told(ask()) == told(answer)
    assert model.inferences.count() == 1
