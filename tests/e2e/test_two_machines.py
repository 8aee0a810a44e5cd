"""Postgres, Redis and a bucket, a web process without workers, and workers in folders of their own: no disk is shared."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.e2e import drawings
from tests.e2e.test_postgres import database_url  # noqa: F401 (a fixture)
from tests.e2e.test_s3 import CREDENTIALS, bucket, endpoint  # noqa: F401 (fixtures)
from tests.environment import REPOSITORY
from tests.platform import WORK_SECONDS, Json, Platform, running_platform

pytestmark = [pytest.mark.e2e, pytest.mark.postgres, pytest.mark.s3]

IMAGES = 300


@pytest.fixture(scope="module")
def shared(database_url: str, endpoint: str, bucket: Any) -> dict[str, str]:  # noqa: F811 (fixtures)
    """What all machines are told."""
    return {
        **CREDENTIALS,
        "AWS_ENDPOINT_URL": endpoint,
        "S3_BUCKET_NAME": bucket.name,
        "DATABASE_URL": database_url,
        "REDIS_URL": os.environ["REDIS_URL"].replace("/0", "/1"),
        "SECRET_KEY": "one-for-all-machines",
    }


@pytest.fixture(scope="module")
def web(shared: dict[str, str]) -> Iterator[Platform]:
    with running_platform(**shared, MEDSEG_QUEUES="none") as platform:
        yield platform


def images_done(worker: Platform) -> int:
    return sum(map(int, re.findall(r"a turn at batch \d+: (\d+) images", worker.log("infer"))))


def send_batch(web: Platform, model: Json) -> Json:
    archive = drawings.zip_of({f"{seed:04d}.png": drawings.png(drawings.disc(seed)[0]) for seed in range(IMAGES)})
    files = {"archive": ("images.zip", archive, "application/zip")}
    created: Json = web.request(
        "POST", "inference-batches/", data={"model": model["id"]}, files=files, expect=202
    ).json()
    return created


@pytest.mark.long
def test_a_batch_spreads_over_machines_and_outlives_one_of_them(
    web: Platform, shared: dict[str, str], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(running_platform("--worker", **shared))
        dataset = web.upload("Discs", drawings.png_dataset())
        assert dataset["status"] == "ready", dataset["error"]
        model = web.train("Discs", dataset, **drawings.TINY, epochs=2)
        assert model["status"] == "completed", model["error"]
        second = Platform(tmp_path / "second", {**shared, "MEDSEG_QUEUES": "infer"})
        stack.callback(second.stop)
        second.start("--worker")

        batch = send_batch(web, model)
        path = f"inference-batches/{batch['id']}/"
        deadline = time.monotonic() + WORK_SECONDS
        while not (images_done(second) and images_done(first)):
            assert time.monotonic() < deadline, web.get(path)
            time.sleep(0.05)
        second.kill()
        at_death, by_second = web.get(path), images_done(second)
        died_at = time.monotonic()
        single = web.infer(model, "single.png", drawings.png(drawings.disc(7)[0]))
        single_seconds = time.monotonic() - died_at
        assert single["status"] == "completed"
        assert at_death["status"] == "running", "the worker was killed too late to show anything"
        third = stack.enter_context(running_platform("--worker", **shared, MEDSEG_QUEUES="infer,housekeeping"))
        batch = web.wait_until_ended(path)
        by_first, by_third = images_done(first), images_done(third)
        for machine in (web, first, second, third):
            assert machine.folder.is_dir()
            assert machine.media() == set()
            assert not list(machine.folder.glob("*.sqlite3*"))
    print(
        f"\nkilled with {at_death['completed']} of {IMAGES} done; by the first worker {by_first}, by the killed one "
        f"{by_second} in whole turns, by one that came later {by_third}; the end {time.monotonic() - died_at:.0f} s after "
        f"the death; a single image meanwhile took {single_seconds:.2f} s"
    )
    assert (batch["status"], batch["total"], batch["completed"], batch["failed"]) == ("completed", IMAGES, IMAGES, 0)
    content = web.request("GET", f"{path}download/").content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert sum(name.startswith("masks/") for name in archive.namelist()) == IMAGES
    with psycopg.connect(shared["DATABASE_URL"]) as connection:
        rows = connection.execute("SELECT attempt FROM inference_results WHERE batch_id IS NOT NULL").fetchall()
    attempts = Counter(attempt for (attempt,) in rows)
    assert attempts[1] >= IMAGES - 1, "no image but the one in the dead worker's hands was begun twice"
    assert attempts[1] + attempts[2] == IMAGES


def test_a_worker_that_could_share_nothing_says_what_is_missing(tmp_path: Path) -> None:
    left_out = ("AWS_", "CELERY_", "DATABASE_URL", "MEDSEG_", "REDIS_URL", "S3_", "SECRET_KEY")
    settings = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    settings |= {"MEDSEG_DATA_DIR": str(tmp_path), "DATABASE_URL": "sqlite:////tmp/x.sqlite3"}
    command = [sys.executable, "scripts/run.py", "--worker"]
    ended = subprocess.run(command, cwd=REPOSITORY, env=settings, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    for name in ("DATABASE_URL: an SQLite file cannot be shared", "REDIS_URL", "S3_BUCKET_NAME", "SECRET_KEY"):
        assert name in ended.stderr
    command_line = {**settings, "MEDSEG_QUEUES": "infer,gpu"}
    ended = subprocess.run(command, cwd=REPOSITORY, env=command_line, capture_output=True, text=True, timeout=60)
    assert "MEDSEG_QUEUES names gpu" in ended.stderr
