"""kill -9 of anything at seeded random moments of every step; afterwards every row is true and every result is whole.

`make test-long` does twenty of them and keeps a table; `make test` a few.
"""

from __future__ import annotations

import io
import json
import os
import random
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.e2e import drawings
from tests.platform import Json, Platform
from tests.reliability import invariants
from tests.reliability.conftest import EPOCHS, TRAINING, Stage

pytestmark = pytest.mark.reliability

KILLS = int(os.environ.get("MEDSEG_KILLS", "3"))
SEED = int(os.environ.get("MEDSEG_KILL_SEED", "1"))
TABLE = os.environ.get("MEDSEG_KILL_TABLE", "")
IMAGES = 300  # of a batch
PAIRS = 3000  # of a dataset that is checked: more than twice the seconds within which the blow falls, also where 1,000 took 2.3
UPLOAD_SECONDS = 1.5  # that a slow line takes
NOISE = 0.05  # of the Dice between two trainings on so few pictures of which one changed its batches' timing
VICTIMS = {
    "worker of trainings": "worker -Q train",
    "training process": "ml_core train",
    "worker of inferences": "worker -Q infer",
    "worker of checks": "worker -Q ingest",
    "web": "uvicorn",
    "Redis": "redis-server",
}
STEPS: dict[str, tuple[list[str], float]] = {
    # step: (who can be killed in it, seconds within which it happens). The first three need a worker: a short run takes these.
    "training": (["training process", "worker of trainings", "web", "Redis"], 6.0),
    "inference": (["worker of inferences", "web", "Redis"], 5.0),
    "check": (["worker of checks", "web", "Redis"], 3.0),
    "upload": (["web", "Redis"], UPLOAD_SECONDS),
    "export": (["web", "Redis"], 0.2),
}


@dataclass(frozen=True)
class Kill:
    step: str
    victim: str
    after: float


def kills() -> list[Kill]:
    """Every step in turn; victim and moment at random, the same for the same seed."""
    dice, found = random.Random(SEED), []
    for number in range(KILLS):
        step = list(STEPS)[number % len(STEPS)]
        victims, within = STEPS[step]
        found.append(Kill(step, victims[number // len(STEPS) % len(victims)], round(dice.uniform(0, within), 2)))
    return found


@pytest.mark.parametrize("kill", kills(), ids=lambda kill: f"{kill.step}-{kill.victim}-{kill.after}")
def test_a_kill_loses_nothing(kill: Kill, stage: Stage) -> None:
    platform, blow = stage.platform, Blow(stage.platform, kill)
    begun = time.monotonic()
    happened = WORK[kill.step](stage, blow)
    wait_until_up(platform)
    invariants.wait_for_rest(platform)
    outcome = happened()
    seconds = round(time.monotonic() - begun, 1)
    problems = invariants.broken(platform)
    if TABLE:
        row = {**asdict(kill), "at_work": blow.at_work, **outcome, "seconds": seconds, "problems": problems}
        with Path(TABLE).open("a") as out:
            out.write(json.dumps(row) + "\n")
    assert not problems
    assert outcome["end"] == "as undisturbed", outcome
    if kill.step == "check":
        assert blow.at_work, "the check was over before the blow: it needs more pairs"
        assert "worker lost" in outcome["timeline"] or kill.victim != "worker of checks", outcome


class Blow:
    """A kill. `at_work`: whether it came while a worker was at the row (None for what needs no worker)."""

    def __init__(self, platform: Platform, kill: Kill) -> None:
        self.platform, self.kill = platform, kill
        self.at_work: bool | None = None

    def __call__(self, path: str = "") -> None:
        """Wait the kill's moment, then end its victim (all processes of it, the youngest first). `path`: of the row."""
        time.sleep(self.kill.after)
        if path:
            row = self.platform.get(path)
            self.at_work = row["status"] in invariants.ACTIVE and row["timeline"][-1]["event"] == "claimed"
        for process in reversed(self.platform.processes_of(VICTIMS[self.kill.victim])):
            with suppress(psutil.Error):
                process.kill()


def wait_until_up(platform: Platform) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(requests.RequestException):
            if platform.http.get(f"{platform.url}/readyz", timeout=10).status_code == 200:
                return
        time.sleep(0.3)
    raise AssertionError(f"The platform did not come up again.\n{platform.tails()}")


def again(work: Callable[[], Any]) -> Any:
    """A client that does what clients do: when the connection breaks, it asks again."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return work()
        except requests.RequestException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def training(stage: Stage, blow: Blow) -> Callable[[], Json]:
    platform = stage.platform
    started = platform.start_training("Disturbed", stage.dataset, **TRAINING)
    platform.wait_for_epoch(started, 1)
    blow(f"models/{started['id']}/")

    def look() -> Json:
        model = platform.get(f"models/{started['id']}/")
        same = model["status"] == "completed" and abs(model["metrics"]["dice"] - stage.model["metrics"]["dice"]) < NOISE
        epochs = [row["epoch"] for row in platform.epochs(model)]
        same = same and epochs == list(range(1, EPOCHS + 1))
        return {"end": "as undisturbed" if same else f"{model['status']}, {model['error']}, epochs {epochs}",
                "attempts": model["attempt"], "dice": (model["metrics"] or {}).get("dice"),
                "undisturbed": stage.model["metrics"]["dice"],
                "timeline": [entry["event"] for entry in model["timeline"]]}  # fmt: skip

    return look


def inference(stage: Stage, blow: Blow) -> Callable[[], Json]:
    platform = stage.platform
    archive = drawings.zip_of(
        {f"{seed}.png": drawings.png(drawings.disc(seed, faint=True)[0]) for seed in range(300, 300 + IMAGES)}
    )
    files = {"archive": ("many.zip", archive, "application/zip")}
    batch = platform.request(
        "POST", "inference-batches/", data={"model": stage.model["id"]}, files=files, expect=202
    ).json()
    blow(f"inference-batches/{batch['id']}/")

    def look() -> Json:
        row = platform.get(f"inference-batches/{batch['id']}/")
        images = platform.get(f"inferences/?batch={batch['id']}&page_size=500")["results"]
        with zipfile.ZipFile(
            io.BytesIO(platform.request("GET", f"inference-batches/{batch['id']}/download/").content)
        ) as results:
            masks = {name: results.read(name) for name in results.namelist() if "/300" in name}
        same = row["status"] == "completed" and row["completed"] == IMAGES and stage.mask in masks.values()
        return {"end": "as undisturbed" if same else f"{row['status']}, {row['completed']} of {IMAGES}, {list(masks)}",
                "attempts": max(image.get("attempt", 1) for image in images),
                "timeline": [entry["event"] for entry in row["timeline"]]}  # fmt: skip

    return look


def check(stage: Stage, blow: Blow) -> Callable[[], Json]:
    platform = stage.platform
    files = {"archive": ("more.zip", drawings.png_dataset(PAIRS), "application/zip")}
    row = platform.request("POST", "datasets/", data={"name": "Disturbed"}, files=files, expect=202).json()
    path = f"datasets/{row['id']}/"
    platform.wait_for(path, lambda dataset: bool(dataset["progress"]) or dataset["status"] != "uploaded")
    blow(path)

    def look() -> Json:
        dataset = platform.get(path)
        same = (dataset["status"], dataset["file_count"]) == ("ready", PAIRS)
        return {"end": "as undisturbed" if same else f"{dataset['status']}, {dataset['error']}",
                "timeline": [entry["event"] for entry in dataset["timeline"]]}  # fmt: skip

    return look


def upload(stage: Stage, blow: Blow) -> Callable[[], Json]:
    """The answer may be lost with the connection; what is there is whole, and a second upload goes through."""
    platform = stage.platform
    archive = drawings.png_dataset(20)
    before = platform.get("datasets/")["count"]
    killer = threading.Thread(target=blow)
    killer.start()
    with suppress(requests.RequestException, AssertionError):
        slowly_upload(platform, archive)
    killer.join()
    wait_until_up(platform)
    second = again(lambda: platform.upload("Cut again", archive))

    def look() -> Json:
        count = platform.get("datasets/")["count"] - before
        same = second["status"] == "ready" and count in (1, 2)
        return {"end": "as undisturbed" if same else f"{second['status']}, {count} datasets", "datasets": count}

    return look


class SlowBody:
    """A request's body as over a slow line, so that a blow comes while it is on its way."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __len__(self) -> int:
        return len(self.content)

    def __iter__(self) -> Iterator[bytes]:
        step = len(self.content) // 50 + 1
        for start in range(0, len(self.content), step):
            yield self.content[start : start + step]
            time.sleep(UPLOAD_SECONDS / 50)


def slowly_upload(platform: Platform, archive: bytes) -> None:
    url, files = f"{platform.url}/api/v1/datasets/", {"archive": ("cut.zip", archive, "application/zip")}
    request = requests.Request("POST", url, data={"name": "Cut"}, files=files).prepare()
    assert isinstance(request.body, bytes)
    headers = {"Content-Type": request.headers["Content-Type"]}
    answer = platform.http.post(url, data=SlowBody(request.body), headers=headers, timeout=120)
    assert answer.status_code == 202, answer.text[:500]


def export(stage: Stage, blow: Blow) -> Callable[[], Json]:
    platform = stage.platform
    path = f"models/{stage.model['id']}/download/"
    whole = platform.request("GET", path).content
    killer = threading.Thread(target=blow)
    killer.start()
    got = b""
    with suppress(requests.RequestException, AssertionError):
        for chunk in platform.request("GET", path, stream=True).iter_content(4096):
            got += chunk
            time.sleep(0.001)
    killer.join()
    wait_until_up(platform)
    rest = again(
        lambda: platform.request(
            "GET", path, headers={"Range": f"bytes={len(got)}-"} if got else {}, expect=(200, 206, 416)
        )
    )
    got = rest.content if rest.status_code == 200 else got + (rest.content if rest.status_code == 206 else b"")

    def look() -> Json:
        return {"end": "as undisturbed" if got == whole else f"{len(got)} of {len(whole)} bytes", "bytes": len(got)}

    return look


WORK: dict[str, Callable[[Stage, Blow], Callable[[], Json]]] = {
    "training": training,
    "inference": inference,
    "check": check,
    "upload": upload,
    "export": export,
}
