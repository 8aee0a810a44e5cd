"""A disk that is full and a database that somebody else holds, in the middle of work: told in words, then all goes on."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e import drawings
from tests.platform import Json, Platform, running
from tests.reliability import invariants
from tests.reliability.conftest import EPOCHS, QUICKLY, Stage, set_up
from tests.reliability.steps import begin

pytestmark = pytest.mark.reliability

SECONDS = float(os.environ.get("MEDSEG_FAULT_SECONDS", "4"))
DISK_MB = 300


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with a disk of its own; only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here (that takes root)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Not a byte is left."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as out:
        for size in (2**20, 4096, 1):
            with suppress(OSError):
                while True:
                    out.write(bytes(size))
    try:
        yield
    finally:
        ballast.unlink()


def try_to_upload(platform: Platform, archive: bytes) -> tuple[int, str]:
    files = {"archive": ("x.zip", archive, "application/zip")}
    answer = platform.http.post(f"{platform.url}/api/v1/datasets/", data={"name": "Late"}, files=files, timeout=300)
    return answer.status_code, answer.text


@pytest.mark.long
def test_a_full_disk_costs_nothing_but_time(small_disk: Path) -> None:
    with running(Platform(small_disk / "data", QUICKLY)) as platform:
        stage = set_up(platform)
        for steps in (["training"], ["check", "inference"]):
            begun = [begin(step, stage) for step in steps]
            with full(small_disk):
                for archive in (drawings.png_dataset(12), bytes(4 * 2**20)):  # spooled in memory, and on the disk
                    status, text = try_to_upload(platform, archive)
                    assert status == 503, text
                    assert "disk" in text, text
                time.sleep(SECONDS)
            for row in begun:
                expect_whole(platform, row)
        assert platform.upload("After", drawings.png_dataset(12))["status"] == "ready"
        assert not invariants.broken(platform)


def expect_whole(platform: Platform, row: Json | None) -> None:
    """A row that was at work during the fault: done, and a training with every epoch once."""
    assert row
    invariants.wait_for_rest(platform)  # a process that could not write at all may be on its way up again
    ended = platform.get(row["path"])
    assert ended["status"] in invariants.DONE, ended["error"]
    if row["path"].startswith("models/"):
        assert [item["epoch"] for item in platform.epochs(ended)] == list(range(1, EPOCHS + 1))


@pytest.mark.long
def test_a_database_that_is_locked_costs_nothing_but_time(stage: Stage) -> None:
    platform = stage.platform
    for steps in (["training"], ["check", "inference"]):
        begun = [begin(step, stage) for step in steps]
        with locked(platform.folder / "medseg.sqlite3"):
            since = time.monotonic()
            assert platform.get("datasets/")["count"] >= 1  # reading goes on under WAL
            status, text = try_to_upload(platform, drawings.png_dataset(12))
            assert status in {202, 503}, text
            assert status == 202 or "database" in text, text
            time.sleep(max(0.0, SECONDS - (time.monotonic() - since)))
        for row in begun:
            expect_whole(platform, row)
    assert not invariants.broken(platform)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Somebody else is writing, and does not come to an end."""
    other = sqlite3.connect(database, isolation_level=None, timeout=60)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()
