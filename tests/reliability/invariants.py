"""What has to be true of a platform at rest, whatever was done to it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from tests.environment import REPOSITORY
from tests.platform import Json, Platform

ACTIVE = {"uploaded", "queued", "training", "running"}
TABLES = ("datasets", "models", "inferences", "inference-batches")
DONE = {"ready", "completed"}


def rows(platform: Platform) -> list[tuple[str, Json]]:
    found: list[tuple[str, Json]] = []
    for table in TABLES:
        found += [(f"{table}/{row['id']}", row) for row in platform.get(f"{table}/?page_size=500")["results"]]
    return found


def wait_for_rest(platform: Platform, seconds: float = 600) -> None:
    """Until nothing is active any more. The web process may be on its way up again."""
    deadline = time.monotonic() + seconds
    busy: Any = "nobody answered"
    while time.monotonic() < deadline:
        try:
            busy = [name for name, row in rows(platform) if row["status"] in ACTIVE]
        except (AssertionError, OSError) as error:  # the web process was killed a moment ago
            busy = error
        if busy == []:
            return
        time.sleep(0.5)
    raise AssertionError(f"After {seconds} s still active: {busy}\n{platform.tails()}")


def broken(platform: Platform) -> list[str]:
    """Sentences; none when all is true."""
    found = []
    for name, row in rows(platform):
        events = [entry["event"] for entry in row["timeline"]]
        ended_well = sum(event in DONE for event in events)
        if row["status"] in DONE and ended_well != 1:
            found.append(f"{name} ran {ended_well} times to its end: {events}")
        if row["status"] in {"failed", "error"} and not row["error"]:
            found.append(f"{name} does not say why it failed")
    report = verify(platform)
    return found + [str(problem) for problem in report["problems"]]


def verify(platform: Platform) -> Json:
    """The report of `manage.py verify_storage`."""
    command = [sys.executable, "manage.py", "verify_storage", "--json"]
    answer = subprocess.run(
        command, cwd=REPOSITORY, env=platform.environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert answer.returncode in (0, 1), answer.stderr[-2000:]
    report: Json = json.loads(answer.stdout)
    return report
