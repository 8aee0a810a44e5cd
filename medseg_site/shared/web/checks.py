"""System checks (`manage.py check`): what is wrong with the set-up, and which variable to set."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.db import connection


@register()
def check_data_folder(**kwargs: Any) -> list[CheckMessage]:
    if os.access(settings.DATA_DIR, os.W_OK):
        return []
    hint = "Give the user that runs the platform write access, or set MEDSEG_DATA_DIR to another folder."
    return [Error(f"The data folder {settings.DATA_DIR} cannot be written.", hint=hint, id="medseg.E001")]


@register()
def check_bucket(**kwargs: Any) -> list[CheckMessage]:
    has_keys = bool(settings.AWS_ACCESS_KEY_ID) and bool(settings.AWS_SECRET_ACCESS_KEY)
    found: list[CheckMessage] = []
    if not settings.S3_BUCKET_NAME and (has_keys or settings.AWS_ENDPOINT_URL):
        hint = "Set S3_BUCKET_NAME, or unset the AWS_ variables to say that the local folder is wanted."
        text = "S3 credentials or an endpoint are set but no bucket: files go to the local folder."
        found.append(Warning(text, hint=hint, id="medseg.W001"))
    if bool(settings.AWS_ACCESS_KEY_ID) != bool(settings.AWS_SECRET_ACCESS_KEY):
        hint = "Set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither (then the machine's role is used)."
        found.append(Error("Only one half of the S3 credentials is set.", hint=hint, id="medseg.E002"))
    for name in ("AWS_ENDPOINT_URL", "AWS_PUBLIC_ENDPOINT_URL"):
        address = getattr(settings, name)
        if address and urlsplit(address).scheme not in {"http", "https"}:
            hint = "Write it with its scheme, such as http://127.0.0.1:9000."
            found.append(Error(f"{name} is not an http or https address.", hint=hint, id="medseg.E003"))
    return found


@register()
def check_redis_url(**kwargs: Any) -> list[CheckMessage]:
    if urlsplit(settings.REDIS_URL).scheme in {"redis", "rediss", "unix"}:
        return []
    hint = "Write it as redis://host:6379/0."
    return [Error("REDIS_URL is not a Redis address.", hint=hint, id="medseg.E004")]


@register()
def check_broker_url(**kwargs: Any) -> list[CheckMessage]:
    if urlsplit(settings.CELERY_BROKER_URL).scheme in {"redis", "rediss", "unix", "amqp", "amqps"}:
        return []
    hint = "Write it as amqp://user:password@host:5672// (RabbitMQ) or redis://host:6379/0, or leave it out: then REDIS_URL is used."
    return [Error("CELERY_BROKER_URL is neither a RabbitMQ nor a Redis address.", hint=hint, id="medseg.E006")]


@register()
def check_front_end(**kwargs: Any) -> list[CheckMessage]:
    if settings.STATICFILES_DIRS:
        return []
    hint = "Run `npm ci` in the project's folder (`make run` does it)."
    return [Warning("The front-end libraries are not installed; pages will look bare.", hint=hint, id="medseg.W002")]


@register()
def check_single_user(**kwargs: Any) -> list[CheckMessage]:
    loopback = {"localhost", "127.0.0.1", "[::1]", "testserver"}
    if not settings.MEDSEG_SINGLE_USER or set(settings.ALLOWED_HOSTS) <= loopback:
        return []
    hint = "Set MEDSEG_SINGLE_USER=0 and make accounts with `manage.py createsuperuser`, or keep to this machine's own address."
    return [
        Warning(
            "Without a login, everybody who reaches ALLOWED_HOSTS can see and delete everything.",
            hint=hint,
            id="medseg.W003",
        )
    ]


@register("database", deploy=False)
def check_sqlite_wal(databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    if connection.vendor != "sqlite" or not databases or connection.is_in_memory_db():  # type: ignore[attr-defined]  # of SQLite's connection
        return []
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode")
        mode = cursor.fetchone()[0]
    if mode == "wal":
        return []
    hint = "Keep MEDSEG_DATA_DIR on a local disk: network folders cannot do it. On several machines use Postgres (DATABASE_URL)."
    return [Error(f"SQLite runs in journal mode {mode!r}, not in WAL.", hint=hint, id="medseg.E005")]
