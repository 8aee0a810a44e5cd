"""The same way through with the messages on RabbitMQ: a temporary server of our own, ended with the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from tests.e2e import drawings
from tests.e2e.walk import walk
from tests.environment import free_port
from tests.platform import Platform, running_platform

pytestmark = [pytest.mark.e2e, pytest.mark.rabbitmq, pytest.mark.long]

START_SECONDS = 120


def program() -> str | None:
    """The server itself: Debian's command on the PATH would change to the account of an installed service."""
    own = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    return str(own) if own.exists() else shutil.which("rabbitmq-server")


@pytest.fixture(scope="module")
def broker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = program()
    if not server:
        pytest.skip("RabbitMQ is not installed here: no rabbitmq-server in /usr/lib/rabbitmq/bin or on the PATH")
    folder, port, names_port = tmp_path_factory.mktemp("rabbitmq"), free_port(), free_port()
    (folder / "plugins").write_text("[].")
    environment = {
        **os.environ,
        "HOME": str(folder),
        "ERL_EPMD_PORT": str(names_port),
        "RABBITMQ_NODENAME": f"medseg{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
    }
    url = f"amqp://guest:guest@127.0.0.1:{port}//"
    with (folder / "out.txt").open("wb") as out:
        process = subprocess.Popen([server], env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_for(url, process, folder / "out.txt")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)
        subprocess.run(["epmd", "-kill"], env=environment, capture_output=True, check=False)


def wait_for(url: str, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with Connection(url, connect_timeout=2) as connection:
                connection.connect()
            return
        except OSError:
            ended = process.poll() is not None or time.monotonic() > deadline
            assert not ended, f"RabbitMQ did not come up: {output.read_text(errors='replace')[-2000:]}"
            time.sleep(0.5)


@pytest.fixture(scope="module")
def platform(broker_url: str) -> Iterator[Platform]:
    with running_platform(CELERY_BROKER_URL=broker_url) as platform:
        yield platform


def test_all_work_goes_over_rabbitmq(platform: Platform, broker_url: str) -> None:
    walked = walk(platform)
    archive = drawings.zip_of({f"{seed}.png": drawings.png(drawings.disc(seed)[0]) for seed in range(20)})
    files = {"archive": ("images.zip", archive, "application/zip")}
    created = platform.request(
        "POST", "inference-batches/", data={"model": walked.model["id"]}, files=files, expect=202
    ).json()
    batch = platform.wait_until_ended(f"inference-batches/{created['id']}/")
    assert (batch["status"], batch["completed"]) == ("completed", 20)
    with Connection(broker_url) as connection:
        channel: Any = connection.default_channel
        for queue in ("ingest", "infer", "train", "housekeeping"):
            assert channel.queue_declare(queue, passive=True).queue == queue
    assert platform.get(f"{platform.url}/readyz")["parts"]["broker"] == "ok"
