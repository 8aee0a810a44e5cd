"""Health, the single user, and what the web process must never load."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from rest_framework.test import APIClient

from medseg_site.asgi import application
from medseg_site.shared.web import health
from tests.environment import REPOSITORY
from tests.factories import DatasetFactory

WORK_OF_WORKERS = {
    "datasets": ["check", "pipeline", "samples", "thumbnails", "versions"],
    "models_app": ["late_weights", "training", "training_process"],
    "inference": ["prediction", "turns"],
}
SHOW_PAGES = """
import sys
import medseg_site.asgi, medseg_site.urls
from django.db import connection
from django.test import Client
from django.test.utils import setup_test_environment
from tests.factories import CompletedModelFactory, ModelFactory
setup_test_environment()
connection.creation.create_test_db(verbosity=0)
usable, cancelled = CompletedModelFactory.create(), ModelFactory.create(status="cancelled")
for row in (usable, cancelled, usable.dataset):
    assert Client().get(row.get_absolute_url()).status_code == 200
print(*sorted(sys.modules))
"""


@pytest.mark.slow
def test_the_web_process_loads_neither_torch_nor_the_work_of_workers() -> None:
    answer = subprocess.run([sys.executable, "-c", SHOW_PAGES], cwd=REPOSITORY, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    loaded = set(answer.stdout.split())
    assert "models_app.views" in loaded
    work = {f"{app}.{name}" for app, names in WORK_OF_WORKERS.items() for name in names}
    assert [name for name in work if not (REPOSITORY / f"{name.replace('.', '/')}.py").exists()] == []
    assert loaded & {*work, "monai", "openvino", "segmentation_models_pytorch", "torch"} == set()


@pytest.mark.django_db
def test_readyz_names_the_part_that_fails(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.get("/healthz").status_code == 200
    ready = client.get("/readyz")
    assert ready.status_code == 200, ready.content

    def broken() -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setitem(health.PARTS, "broker", broken)
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["parts"]["broker"] == "ConnectionError: nobody there"
    assert answer.json()["parts"]["database"] == "ok"


@pytest.mark.django_db
@pytest.mark.parametrize("headers", [{"HTTP_ORIGIN": "http://evil.example"}, {"HTTP_SEC_FETCH_SITE": "cross-site"}])
def test_another_site_cannot_change_anything(api: APIClient, headers: Any) -> None:
    dataset = DatasetFactory.create()
    assert api.delete(f"/api/v1/datasets/{dataset.pk}/", **headers).status_code == 403
    assert api.delete(f"/api/v1/datasets/{dataset.pk}/", HTTP_ORIGIN="http://testserver").status_code == 204


@pytest.mark.django_db
def test_with_several_users_each_sees_their_own(settings: Any) -> None:
    settings.MEDSEG_SINGLE_USER = False
    anna, bert = (User.objects.create_user(name) for name in ("anna", "bert"))
    dataset = DatasetFactory.create(created_by=anna)
    api = APIClient()
    assert api.get("/api/v1/datasets/").status_code in {401, 403}
    api.force_authenticate(bert)
    assert api.get("/api/v1/datasets/").json()["count"] == 0
    assert api.get(f"/api/v1/datasets/{dataset.pk}/").status_code == 404
    assert api.delete(f"/api/v1/datasets/{dataset.pk}/").status_code == 404
    api.force_authenticate(anna)
    assert api.get("/api/v1/datasets/").json()["count"] == 1


@pytest.mark.parametrize(
    ("changed", "id"),
    [
        ({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": ""}, "medseg.E002"),
        ({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "S3_BUCKET_NAME": ""}, "medseg.W001"),
        ({"AWS_ENDPOINT_URL": "minio:9000", "S3_BUCKET_NAME": "b"}, "medseg.E003"),
        ({"REDIS_URL": "localhost:6379"}, "medseg.E004"),
        ({"CELERY_BROKER_URL": "sqs://"}, "medseg.E006"),
        ({"ALLOWED_HOSTS": ["lab.example"], "MEDSEG_SINGLE_USER": True}, "medseg.W003"),
    ],
)
def test_system_checks_explain_a_wrong_set_up(changed: dict[str, Any], id: str, settings: Any) -> None:
    from django.core.checks import run_checks

    for name, value in changed.items():
        setattr(settings, name, value)
    found = {message.id: message for message in run_checks()}
    assert id in found
    assert found[id].hint


def test_no_migration_is_missing(db: None) -> None:
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)


@pytest.mark.django_db  # Channels looks after the connection that an earlier test's WebSocket left in its thread
@pytest.mark.parametrize("origin", [b"http://[", b"http://other.example"])
def test_a_websocket_of_another_site_is_refused(origin: bytes) -> None:
    async def answer() -> str:
        scope = {"type": "websocket", "path": "/ws/models/1/", "headers": [(b"origin", origin)], "query_string": b""}
        connection = ApplicationCommunicator(application, scope)
        await connection.send_input({"type": "websocket.connect"})
        return str((await connection.receive_output())["type"])

    assert asyncio.run(answer()) == "websocket.close"


@pytest.mark.slow
def test_the_api_document_is_made_without_a_warning(db: None, tmp_path: Path) -> None:
    call_command("spectacular", "--validate", "--fail-on-warn", "--file", str(tmp_path / "schema.yml"))
