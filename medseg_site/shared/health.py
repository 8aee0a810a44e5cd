"""Is the process alive, and can it do its work?"""

from __future__ import annotations

import uuid
from collections.abc import Callable

from django.core.files.storage import default_storage
from django.db import connection
from django.http import HttpRequest, JsonResponse

from medseg_site.shared import progress, storage


def check_database() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM django_migrations")


def check_storage() -> None:
    if storage.is_remote():
        default_storage.connection.meta.client.head_bucket(Bucket=storage.bucket_name())  # type: ignore[attr-defined]
        return
    key = f"readyz-{uuid.uuid4().hex}"
    storage.store_bytes(key, b"ready")
    default_storage.delete(key)


def check_broker() -> None:
    progress.redis_client().ping()


PARTS: dict[str, Callable[[], None]] = {
    "database": check_database,
    "storage": check_storage,
    "broker": check_broker,
}


def healthz(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"status": "ok"})


def readyz(request: HttpRequest) -> JsonResponse:
    """200 when database, storage and broker answer; 503 naming those that do not."""
    parts = {}
    for name, check in PARTS.items():
        try:
            check()
            parts[name] = "ok"
        except Exception as error:
            parts[name] = f"{type(error).__name__}: {error}"[:300]
    ready = all(answer == "ok" for answer in parts.values())
    return JsonResponse({"status": "ready" if ready else "not ready", "parts": parts}, status=200 if ready else 503)
