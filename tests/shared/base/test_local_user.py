"""With several users programs say who they are by a token, on the API and on WebSockets."""

from __future__ import annotations

import asyncio
from io import StringIO
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from rest_framework.authtoken.models import Token
from rest_framework.test import APIClient

from datasets.models import Dataset
from medseg_site.asgi import application
from medseg_site.shared.base.local_user import local_user
from tests.factories import DatasetFactory, ModelFactory

LIST = "/api/v1/datasets/"


@pytest.fixture
def several_users(db: None, settings: Any) -> None:
    settings.MEDSEG_SINGLE_USER = False


def program(token: str) -> APIClient:
    """Django's own check of forged requests is on, as for a browser."""
    client = APIClient(enforce_csrf_checks=True)
    client.credentials(HTTP_AUTHORIZATION=f"Token {token}")
    return client


def token_of(name: str) -> str:
    return str(Token.objects.create(user=User.objects.get_or_create(username=name)[0]).key)


def test_a_token_made_on_the_command_line_opens_its_users_own_rows(several_users: None) -> None:
    anna = User.objects.create_user("anna")
    own, theirs = (
        DatasetFactory.create(created_by=anna),
        DatasetFactory.create(created_by=User.objects.create_user("b")),
    )
    words = StringIO()
    call_command("drf_create_token", "anna", stdout=words)
    client = program(words.getvalue().split()[2])
    assert [row["id"] for row in client.get(LIST).json()["results"]] == [own.pk]
    assert client.get(f"{LIST}{theirs.pk}/").status_code == 404
    assert client.delete(f"{LIST}{theirs.pk}/").status_code == 404
    assert client.delete(f"{LIST}{own.pk}/").status_code == 204
    archive = SimpleUploadedFile("set.zip", b"PK\x05\x06" + bytes(18))
    answer = client.post(LIST, {"name": "mine", "archive": archive}, format="multipart")
    assert answer.status_code == 202, answer.content
    assert Dataset.objects.get(pk=answer.json()["id"]).created_by == anna


def test_without_a_right_token_nothing_is_shown(several_users: None) -> None:
    Token.objects.create(user=User.objects.create_user("gone", is_active=False), key="f" * 40)
    for client in (APIClient(), program("0" * 40), program("f" * 40), program("")):
        answer = client.get(LIST)
        assert (answer.status_code, answer["WWW-Authenticate"]) == (401, "Token"), answer.content
        assert answer.json()["errors"][0]["code"] in {"not_authenticated", "authentication_failed"}


def test_a_session_still_needs_the_pages_own_word_against_forged_requests(several_users: None) -> None:
    anna = User.objects.create_user("anna")
    dataset = DatasetFactory.create(created_by=anna)
    client = APIClient(enforce_csrf_checks=True)
    client.force_login(anna)
    assert client.get(LIST).json()["count"] == 1
    assert client.delete(f"{LIST}{dataset.pk}/").status_code == 403


def test_a_single_user_needs_no_token_and_a_wrong_one_does_no_harm(db: None) -> None:
    DatasetFactory.create()
    for client in (APIClient(), program("0" * 40)):
        assert client.get(LIST).json()["count"] == 1
    assert program(token_of("local")).delete(f"{LIST}1/", HTTP_ORIGIN="http://evil.example").status_code == 403


def test_a_token_is_made_and_taken_away_in_the_admin(client: Client, several_users: None) -> None:
    client.force_login(local_user())
    anna = User.objects.create_user("anna")
    client.post(reverse("admin:authtoken_tokenproxy_add"), {"user": anna.pk})
    token = Token.objects.get(user=anna)
    assert token.key in client.get(reverse("admin:authtoken_tokenproxy_changelist")).content.decode()
    assert program(token.key).get(LIST).status_code == 200
    client.post(reverse("admin:authtoken_tokenproxy_delete", args=[anna.pk]), {"post": "yes"})
    assert program(token.key).get(LIST).status_code == 401


@pytest.mark.django_db(transaction=True)
def test_a_token_opens_the_websocket_of_its_users_own_trainings(settings: Any) -> None:
    settings.MEDSEG_SINGLE_USER = False
    anna = User.objects.create_user("anna")
    own, theirs = ModelFactory.create(created_by=anna), ModelFactory.create(created_by=User.objects.create_user("b"))
    token = token_of("anna")
    assert first_word(own.pk, f"Token {token}") == "websocket.send"
    for pk, header in [
        (theirs.pk, f"Token {token}"),
        (own.pk, f"Token {token}x"),
        (own.pk, f"Bearer {token}"),
        (own.pk, ""),
    ]:
        assert first_word(pk, header) == "websocket.close"


def first_word(pk: int, authorization: str) -> str:
    """What comes after the connection was accepted: the state of the training, or the end."""

    async def ask() -> str:
        headers = [(b"authorization", authorization.encode())] if authorization else []
        scope = {"type": "websocket", "path": f"/ws/models/{pk}/", "headers": headers, "query_string": b""}
        connection = ApplicationCommunicator(application, scope)
        await connection.send_input({"type": "websocket.connect"})
        assert (await connection.receive_output(10))["type"] == "websocket.accept"
        return str((await connection.receive_output(10))["type"])

    return asyncio.run(ask())
