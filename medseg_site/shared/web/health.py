"""`/healthz` (the process is alive) and `/readyz` (database, storage and broker answer)."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from celery import current_app
from django.conf import settings
from django.core.files.storage import default_storage
from django.db import connection
from django.http import HttpRequest, JsonResponse

from medseg_site.shared.base import events
from medseg_site.shared.storage import objects as storage
from medseg_site.shared.storage import remote


def check_database() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM django_migrations")


def check_storage() -> None:
    if storage.is_remote():
        remote.client().head_bucket(Bucket=storage.bucket_name())
        return
    key = f"readyz-{uuid.uuid4().hex}"
    storage.store_bytes(key, b"ready")
    default_storage.delete(key)


def check_broker() -> None:
    """Redis, and the message broker where it is another server."""
    events.redis_client().ping()
    if settings.CELERY_BROKER_URL != settings.REDIS_URL:
        with current_app.connection_for_write(connect_timeout=3) as broker:
            broker.ensure_connection(max_retries=1, interval_start=1, timeout=5)


PARTS: dict[str, Callable[[], None]] = {
    "database": check_database,
    "storage": check_storage,
    "broker": check_broker,
}


def answers() -> dict[str, str]:
    """Part → `ok`, or what went wrong."""
    parts = {}
    for name, check in PARTS.items():
        try:
            check()
            parts[name] = "ok"
        except Exception as error:
            parts[name] = f"{type(error).__name__}: {error}"[:300]
    return parts


def healthz(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"status": "ok"})


def readyz(request: HttpRequest) -> JsonResponse:
    """200 when database, storage and broker answer; else 503, which names those that do not."""
    parts = answers()
    ready = all(answer == "ok" for answer in parts.values())
    return JsonResponse({"status": "ready" if ready else "not ready", "parts": parts}, status=200 if ready else 503)
