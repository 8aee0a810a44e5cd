"""S3 that answers 503, hangs or cuts connections, and a Redis that is away, in the middle of every step: all ends as it should.

`make test-long` runs them, 30 seconds each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import boto3
import psutil
import pytest
import requests
from moto.server import ThreadedMotoServer

from tests.e2e import drawings
from tests.platform import Json, running_platform
from tests.reliability import invariants
from tests.reliability.conftest import EPOCHS, QUICKLY, TRAINING, Stage, set_up
from tests.reliability.faulty_store import FaultyStore
from tests.reliability.steps import begin

pytestmark = pytest.mark.reliability

SECONDS = float(os.environ.get("MEDSEG_FAULT_SECONDS", "4"))
EVERY_FAULT = [
    (step, fault) for step in ("upload", "check", "training", "inference") for fault in ("503", "hang", "cut")
]


@pytest.fixture(scope="module")
def store() -> Iterator[FaultyStore]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", **keys).create_bucket(Bucket="faulty")
    proxy = FaultyStore(host, port, seed=1)
    yield proxy
    proxy.close()
    server.stop()


@pytest.fixture(scope="module")
def remote_stage(store: FaultyStore) -> Iterator[Stage]:
    settings = {
        "S3_BUCKET_NAME": "faulty",
        "AWS_ENDPOINT_URL": store.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    assert urlsplit(store.url).port
    with running_platform(**QUICKLY, **settings) as platform:
        yield set_up(platform)


@pytest.mark.s3
@pytest.mark.long
@pytest.mark.parametrize(("step", "fault"), EVERY_FAULT)
def test_storage_that_fails_for_a_while_costs_nothing(
    step: str, fault: str, remote_stage: Stage, store: FaultyStore
) -> None:
    row = begin(step, remote_stage)
    store.begin(fault)
    if step == "upload":
        row = upload_during_the_fault(remote_stage)
    time.sleep(SECONDS)
    store.end()
    platform = remote_stage.platform
    if row is None:  # the upload was refused with a reason; afterwards it goes through
        row = platform.upload("After the fault", drawings.png_dataset(12))
        row = {**row, "path": f"datasets/{row['id']}/"}
    ended = platform.wait_until_ended(row["path"])
    assert ended["status"] in invariants.DONE, ended["error"]
    assert not invariants.broken(platform)
    if step == "training":
        assert [item["epoch"] for item in platform.epochs(ended)] == list(range(1, EPOCHS + 1))


def upload_during_the_fault(stage: Stage) -> Json | None:
    """A request that meets the fault: taken in the end, or refused with 503 and the reason. Never a 500."""
    platform = stage.platform
    files = {"archive": ("x.zip", drawings.png_dataset(12), "application/zip")}
    answer = platform.http.post(f"{platform.url}/api/v1/datasets/", data={"name": "Faulty"}, files=files, timeout=300)
    assert answer.status_code in {202, 503}, answer.text[:500]
    if answer.status_code == 202:
        return {"path": f"datasets/{answer.json()['id']}/"}
    assert "storage" in answer.json()["errors"][0]["detail"]
    return None


@pytest.mark.long
def test_a_broker_that_is_away_costs_nothing(stage: Stage) -> None:
    platform = stage.platform
    started = platform.start_training("Without broker", stage.dataset, **TRAINING)
    deadline = time.monotonic() + SECONDS
    created = []
    while time.monotonic() < deadline:  # supervisor brings it back each time
        for process in platform.processes_of("redis-server"):
            with suppress(psutil.Error):
                process.kill()
        files = {"archive": ("x.zip", drawings.png_dataset(4), "application/zip")}
        with suppress(requests.RequestException):
            answer = platform.http.post(
                f"{platform.url}/api/v1/datasets/", data={"name": "Without broker"}, files=files, timeout=60
            )
            assert answer.status_code == 202, answer.text[:500]
            created.append(answer.json()["id"])
        time.sleep(0.5)
    for number in created:
        assert platform.wait_until_ended(f"datasets/{number}/")["status"] == "ready"
    model = platform.wait_until_ended(f"models/{started['id']}/")
    assert model["status"] == "completed", model["error"]
    assert not invariants.broken(platform)
