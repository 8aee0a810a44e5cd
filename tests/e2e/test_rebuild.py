"""The database is lost while a training runs: a rebuilt platform says what it said, and the training goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e import drawings
from tests.e2e.test_postgres import database_url  # noqa: F401 (a fixture)
from tests.environment import REPOSITORY
from tests.platform import WORK_SECONDS, Json, Platform, running_platform

pytestmark = pytest.mark.e2e


@pytest.fixture(
    scope="module", params=["sqlite", pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.long])]
)
def platform(request: pytest.FixtureRequest) -> Iterator[Platform]:
    settings = {} if request.param == "sqlite" else {"DATABASE_URL": request.getfixturevalue("database_url")}
    with running_platform(**settings) as platform:
        yield platform


def lose_the_database(platform: Platform) -> None:
    if "DATABASE_URL" in platform.environment:
        manage(platform, "flush", "--no-input")
    for path in platform.folder.glob("medseg.sqlite3*"):
        path.unlink()
    manage(platform, "migrate", "-v0")


def manage(platform: Platform, *arguments: str) -> str:
    command = [sys.executable, "manage.py", *arguments]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=platform.environment, capture_output=True, text=True, timeout=WORK_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def answers(platform: Platform, *, but: Json) -> dict[str, Any]:
    """Every list and detail of the API, without the training that goes on."""
    found: dict[str, Any] = {}
    children = {"datasets": ["samples/"], "models": ["epochs/"], "inferences": [], "inference-batches": []}
    for kind, below in children.items():
        rows = platform.get(f"{kind}/?page_size=500")["results"]
        for row in rows:
            if kind != "models" or row["id"] != but["id"]:
                found[f"{kind} in the list: {row['id']}"] = row
                for child in ("", *below):
                    found[f"{kind}/{row['id']}/{child}"] = platform.get(f"{kind}/{row['id']}/{child}")
        assert rows
    return found


def test_a_lost_database_comes_back_and_an_interrupted_training_goes_on(platform: Platform) -> None:
    dataset = platform.upload("Discs", drawings.png_dataset(pairs=6))
    model = platform.train("Discs", dataset, **drawings.TINY, epochs=2)
    assert model["status"] == "completed", model["error"]
    image = drawings.png(drawings.disc(100)[0])
    found = platform.infer(model, "one.png", image, mask=("ref.png", drawings.mask_png(100)))
    assert found["status"] == "completed", found["error"]
    files = {"archive": ("batch.zip", drawings.zip_of({"a.png": image, "b.png": image}), "application/zip")}
    batch = platform.request("POST", "inference-batches/", data={"model": model["id"]}, files=files, expect=202).json()
    platform.wait_until_ended(f"inference-batches/{batch['id']}/")

    going = platform.start_training("Long", dataset, **drawings.TINY, epochs=2000)
    manifests = platform.folder / "media"
    platform.wait_for_epoch(going, 2)

    def has_curve() -> bool:
        keys = [key for key in platform.media() if key.startswith("models/") and key.endswith("manifest.json")]
        documents = [json.loads((manifests / key).read_text()) for key in keys]
        return any(item["row"]["id"] == going["id"] and len(item["epochs"]) > 1 for item in documents)

    platform.wait_for(f"models/{going['id']}/", lambda row: has_curve())
    said = answers(platform, but=going)
    assert platform.stop() == []
    lose_the_database(platform)
    told = manage(platform, "rebuild_catalog")
    assert "models: restored 2, already there 0; 1 restored to the queue" in told
    platform.start()
    assert answers(platform, but=going) == said
    newer = platform.infer(model, "two.png", image)
    assert newer["id"] > found["id"] + 2, "the numbers of all that came back are taken"
    before = platform.epochs(going)[-1]["epoch"]
    assert before > 1, "the curve so far came back"
    platform.wait_for_epoch(going, before + 2)
    curve = [row["epoch"] for row in platform.epochs(going)]
    assert curve[:1] == [1]
    assert len(set(curve)) == len(curve)
    platform.request("POST", f"models/{going['id']}/cancel/", expect=202)
    ended = platform.wait_until_ended(f"models/{going['id']}/")
    assert ended["status"] == "cancelled", ended["error"]
    assert "0 problems, 0 mended; 0 objects of no row" in manage(platform, "verify_storage")
