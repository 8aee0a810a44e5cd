"""A whole platform for tests: `scripts/run.py` on a folder and ports of its own, and a client that speaks to it.

Nothing in it is replaced: the web process, the three workers, beat and Redis are those of the Procfile.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import requests

from tests.environment import REPOSITORY, free_port

# Generous: these end a test that hangs, they do not measure. A shared machine may be many times slower than a quiet one.
READY_SECONDS = 180
WORK_SECONDS = 600
# What decides where a platform keeps things; it starts from none of it and takes what the test gives.
OWN_SETTINGS = ("AWS_", "CELERY_", "DATABASE_URL", "DEBUG", "MEDSEG_", "PORT", "REDIS_URL", "S3_BUCKET_NAME")

Json = dict[str, Any]


class Platform:
    """A running platform: `folder` holds its data, `url` is its address (no slash at the end)."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.folder = folder
        port, redis_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(OWN_SETTINGS)}
        self.environment = {
            **inherited,
            "MEDSEG_DATA_DIR": str(folder),
            "PORT": str(port),
            "MEDSEG_REDIS_PORT": str(redis_port),
            "OMP_NUM_THREADS": "1",  # enough for tiny images, and steady where other processes take turns on the same cores
            "MEDSEG_STALE_SECONDS": "20",  # the dead are missed sooner than by default
            "MAKELEVEL": "1",  # as under `make run`: the launcher ends when the tests' process is killed
            **settings,
        }
        self.http = requests.Session()
        self.http.trust_env = False  # no proxy stands between this machine and itself
        self._launcher: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Returns when /readyz is 200. Raises RuntimeError with the launcher's words when it does not come up."""
        self.folder.mkdir(parents=True, exist_ok=True)
        output = self.folder / "run.txt"
        with output.open("wb") as out:
            self._launcher = subprocess.Popen(
                [sys.executable, "scripts/run.py", *options],
                cwd=REPOSITORY,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + READY_SECONDS
        while " is ready: " not in output.read_text(errors="replace"):
            if self._launcher.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The platform did not come up:\n{output.read_text(errors='replace')[-4000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """As a power cut: all processes at once, in the middle of whatever they do."""
        assert self._launcher
        doomed = [psutil.Process(self._launcher.pid), *self.processes()]
        for process in doomed:
            process.suspend()  # so that none sees another one die, and acts on it
        for process in doomed:
            process.kill()
        self._launcher.wait(timeout=10)
        self._launcher = None

    def stop(self) -> list[str]:
        """End all of it. Returns the command lines of processes that were left over (and are ended now)."""
        if self._launcher is None:
            return []
        started = self.processes()
        self._launcher.send_signal(signal.SIGTERM)
        try:
            self._launcher.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._launcher.kill()
        left = []
        for process in started:
            with suppress(psutil.Error):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(" ".join(process.cmdline()))
                    process.kill()
        return left

    # --- Processes and files ----------------------------------------------------------------------------------------
    def processes(self) -> list[psutil.Process]:
        """Every process of this platform but its launcher, the children's children as well."""
        assert self._launcher
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._launcher.pid).children(recursive=True)
        return []

    def processes_of(self, words: str) -> list[psutil.Process]:
        """The platform's processes with `words` in their command line, parents first."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                if words in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def log(self, name: str) -> str:
        return (self.folder / "logs" / f"{name}.log").read_text(errors="replace")

    def times_loaded(self) -> int:
        """How often the inference worker has loaded a model from storage."""
        return len(re.findall(r"\bloaded .+ in [\d.]+ s", self.log("infer")))

    def media(self) -> set[str]:
        """The keys of all objects in the local folder."""
        root = self.folder / "media"
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}

    # --- The API ------------------------------------------------------------------------------------------------------
    def request(self, method: str, path: str, *, expect: int | tuple[int, ...] = 200, **more: Any) -> requests.Response:
        """An answer of the API (`path` below /api/v1/), which must have the status `expect`."""
        url = path if path.startswith("http") else f"{self.url}/api/v1/{path}"
        answer = self.http.request(method, url, timeout=120, **more)
        expected = expect if isinstance(expect, tuple) else (expect,)
        assert answer.status_code in expected, f"{method} {path}: {answer.status_code} {answer.text[:1000]}"
        return answer

    def get(self, path: str) -> Json:
        document: Json = self.request("GET", path).json()
        return document

    def wait_for(self, path: str, is_so: Callable[[Json], bool]) -> Json:
        """Ask again until the resource is as wanted."""
        deadline = time.monotonic() + WORK_SECONDS
        while not is_so(document := self.get(path)):
            assert time.monotonic() < deadline, f"{path} after {WORK_SECONDS} s: {document}\n{self.tails()}"
            time.sleep(0.2)
        return document

    def wait_until_ended(self, path: str) -> Json:
        return self.wait_for(path, lambda row: row["status"] not in {"uploaded", "queued", "training", "running"})

    def tails(self) -> str:
        logs = sorted((self.folder / "logs").glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in logs)

    def upload(self, name: str, archive: bytes) -> Json:
        """A dataset from a ZIP's bytes, when its check has ended (well or badly)."""
        files = {"archive": (f"{name}.zip", archive, "application/zip")}
        created = self.request("POST", "datasets/", data={"name": name}, files=files, expect=202).json()
        return self.wait_until_ended(f"datasets/{created['id']}/")

    def start_training(self, name: str, dataset: Json, **hyperparameters: Any) -> Json:
        wanted = {"name": name, "dataset": dataset["id"], "hyperparameters": hyperparameters}
        created: Json = self.request("POST", "models/", json=wanted, expect=202).json()
        return created

    def train(self, name: str, dataset: Json, **hyperparameters: Any) -> Json:
        created = self.start_training(name, dataset, **hyperparameters)
        return self.wait_until_ended(f"models/{created['id']}/")

    def epochs(self, model: Json) -> list[Json]:
        """The training's curve."""
        rows: list[Json] = self.get(f"models/{model['id']}/epochs/?page_size=500")["results"]
        return rows

    def wait_for_epoch(self, model: Json, epoch: int) -> None:
        """Until a training that goes on has finished this epoch."""
        deadline = time.monotonic() + WORK_SECONDS
        while len(self.epochs(model)) < epoch:
            now = self.get(f"models/{model['id']}/")
            assert now["status"] in {"queued", "training"}, now
            assert time.monotonic() < deadline, f"{now}\n{self.tails()}"
            time.sleep(0.1)

    def infer(self, model: Json, name: str, content: bytes, **files: tuple[str, bytes]) -> Json:
        """An inference, answered when it has ended."""
        answer = self.request(
            "POST",
            "inferences/",
            data={"model": model["id"]},
            files={"image": (name, content), **files},
            headers={"Prefer": "wait=60"},
            expect=(201, 202),
        )
        assert answer.headers["Preference-Applied"] == "wait=60"
        return self.wait_until_ended(f"inferences/{answer.json()['id']}/")


@contextmanager
def running_platform(*options: str, **settings: str) -> Iterator[Platform]:
    """A platform that is ready (with `--worker` only its workers), ended whatever happens. `settings` are environment variables."""
    with (
        tempfile.TemporaryDirectory(prefix="medseg-platform-", ignore_cleanup_errors=True) as folder,
        running(Platform(Path(folder), settings), *options) as platform,
    ):
        yield platform


@contextmanager
def running(platform: Platform, *options: str) -> Iterator[Platform]:
    """The same in a folder of its own."""
    try:
        platform.start(*options)
        yield platform
    finally:
        left = platform.stop()
    assert not left, f"The platform left processes behind: {left}"
