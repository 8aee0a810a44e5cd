"""What interrupts a training, and what is left after a deletion."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from functools import partial

import psutil
import pytest

from tests.e2e import drawings
from tests.platform import Json, Platform

pytestmark = pytest.mark.e2e

EPOCHS = 15  # many enough that the interruption after the second comes in time


def _is_attempt(number: int, row: Json) -> bool:
    return bool(row["attempt"] == number)


def assert_curve_is_whole(epochs: list[Json], last: int) -> None:
    assert [row["epoch"] for row in epochs] == list(range(1, last + 1)), "a gap, or an epoch twice"


def test_a_cancelled_training_keeps_its_weights_and_can_be_resumed(platform: Platform, dataset: Json) -> None:
    started = platform.start_training("Interrupted", dataset, **drawings.TINY, epochs=EPOCHS)
    path = f"models/{started['id']}/"
    platform.wait_for_epoch(started, 2)
    refused = platform.request("DELETE", f"datasets/{dataset['id']}/", expect=409).json()
    assert "training" in refused["errors"][0]["detail"]
    platform.request("POST", f"{path}cancel/", expect=202)
    cancelled = platform.wait_until_ended(path)
    assert cancelled["status"] == "cancelled"
    before = platform.epochs(started)
    assert 2 <= len(before) < EPOCHS
    assert_curve_is_whole(before, len(before))
    assert platform.request("GET", f"{path}download/").content[:2] == b"PK"
    result = platform.infer(cancelled, "unseen.png", drawings.png(drawings.disc(200)[0]))
    assert result["status"] == "completed", result["error"]
    platform.request("POST", f"{path}cancel/", expect=409)

    platform.request("POST", f"{path}resume/", expect=202)
    resumed = platform.wait_until_ended(path)
    assert resumed["status"] == "completed", resumed["error"]
    assert resumed["checksum"] != cancelled["checksum"]
    after = platform.epochs(started)
    assert_curve_is_whole(after, EPOCHS)
    for now, then in zip(
        after, before, strict=False
    ):  # one that was done again, after the last checkpoint, came out the same
        assert now["train_loss"] == pytest.approx(then["train_loss"], rel=1e-4)
        assert now["val_dice"] == pytest.approx(then["val_dice"], abs=1e-3)


@pytest.mark.long
def test_a_killed_training_process_is_named_and_after_three_attempts_the_training_fails(
    platform: Platform, dataset: Json
) -> None:
    started = platform.start_training("Killed", dataset, **drawings.TINY, epochs=10_000)
    path = f"models/{started['id']}/"
    workers = platform.processes_of("worker -Q train")
    for attempt in (1, 2, 3):
        platform.wait_for(path, partial(_is_attempt, attempt))
        before = len(platform.epochs(started))
        platform.wait_for_epoch(started, before + 1)
        (training,) = platform.processes_of("ml_core train")
        training.kill()
    failed = platform.wait_until_ended(path)
    assert failed["status"] == "failed"
    assert "killed (SIGKILL" in failed["error"]
    assert "Resume it" in failed["error"], "the error does not say what to do"
    happened = [entry["event"] for entry in failed["timeline"]]
    assert happened == ["queued", "claimed", "worker lost", "claimed", "worker lost", "claimed", "failed"]
    assert_curve_is_whole(platform.epochs(started), len(platform.epochs(started)))
    assert workers
    assert all(worker.is_running() for worker in workers), "the worker died with its training"
    text = platform.request("GET", f"{path}log/").text
    assert "Training starts after epoch" in text
    assert "Attempt 3" in text


@pytest.mark.long
def test_a_hanging_batch_is_killed_when_the_training_is_cancelled(platform: Platform, dataset: Json) -> None:
    earlier = set(platform.folder.glob("trainings/*/best.safetensors"))
    started = platform.start_training("Hanging", dataset, **drawings.TINY, epochs=10_000)
    path = f"models/{started['id']}/"
    platform.wait_for(path, lambda row: set(platform.folder.glob("trainings/*/best.safetensors")) > earlier)
    (training,) = platform.processes_of("ml_core train")
    training.suspend()
    platform.request("POST", f"{path}cancel/", expect=202)
    cancelled = platform.wait_until_ended(path)
    assert cancelled["status"] == "cancelled"
    assert not training.is_running()
    assert any("did not answer" in entry.get("detail", "") for entry in cancelled["timeline"])
    # A worker of inferences packages what the training left.
    cancelled = platform.wait_for(path, lambda row: bool(row["checksum"]))
    result = platform.infer(cancelled, "unseen.png", drawings.png(drawings.disc(200)[0]))
    assert result["status"] == "completed", result["error"]


@pytest.mark.long
def test_a_cancelled_training_can_go_on_with_more_epochs(platform: Platform, dataset: Json) -> None:
    started = platform.start_training("Longer", dataset, **drawings.TINY, epochs=EPOCHS)
    path = f"models/{started['id']}/"
    platform.wait_for_epoch(started, 1)
    platform.request("POST", f"{path}cancel/", expect=202)
    platform.wait_until_ended(path)
    platform.request("POST", f"{path}resume/", json={"encoder": "plain-32"}, expect=400)
    platform.request("POST", f"{path}resume/", json={"epochs": EPOCHS + 3}, expect=202)
    resumed = platform.wait_until_ended(path)
    assert resumed["status"] == "completed", resumed["error"]
    assert resumed["hyperparameters"]["epochs"] == EPOCHS + 3
    assert_curve_is_whole(platform.epochs(started), EPOCHS + 3)


def test_a_training_whose_worker_is_killed_goes_on_where_it_was(platform: Platform, dataset: Json) -> None:
    """Takes over a minute: that long a heart must be silent before the row is given back to the queue."""
    started = platform.start_training("Orphaned", dataset, **drawings.TINY, epochs=EPOCHS)
    platform.wait_for_epoch(started, 2)
    training = platform.processes_of("ml_core train")
    workers = platform.processes_of("worker -Q train")
    assert len(training) == 1
    assert len(workers) == 2, "the worker and the child in which it runs tasks"
    for worker in workers:
        worker.kill()
    _, alive = psutil.wait_procs(training, timeout=60)
    assert not alive, "the training process outlived its worker"
    before = platform.epochs(started)
    assert 2 <= len(before) < EPOCHS
    completed = platform.wait_until_ended(f"models/{started['id']}/")
    assert completed["status"] == "completed", completed["error"]
    assert completed["attempt"] == 2
    after = platform.epochs(started)
    assert_curve_is_whole(after, EPOCHS)
    for now, then in zip(
        after, before, strict=False
    ):  # one that was done again, after the last checkpoint, came out the same
        assert now["train_loss"] == pytest.approx(then["train_loss"], rel=1e-4)
        assert now["val_dice"] == pytest.approx(then["val_dice"], abs=1e-3)


@pytest.fixture
def served_zip() -> Iterator[str]:
    """The address of a ZIP on a web server of this machine."""
    content = drawings.png_dataset(pairs=3)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/zip")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/discs.zip"
    server.shutdown()
    server.server_close()


def test_what_came_from_a_url_is_trained_used_and_deleted_without_a_trace(platform: Platform, served_zip: str) -> None:
    before = platform.media()
    created = platform.request(
        "POST", "datasets/", json={"name": "From a URL", "source_url": served_zip}, expect=202
    ).json()
    dataset = platform.wait_until_ended(f"datasets/{created['id']}/")
    assert dataset["status"] == "ready", dataset["error"]
    assert (dataset["file_count"], dataset["source_url"]) == (3, served_zip)
    model = platform.train("From a URL", dataset, **drawings.TINY, epochs=1)
    assert model["status"] == "completed", model["error"]
    image = drawings.png(drawings.disc(300)[0])
    result = platform.infer(model, "unseen.png", image, mask=("unseen_mask.png", drawings.mask_png(300)))
    assert result["status"] == "completed", result["error"]
    made = platform.media() - before
    owners = {key.split("/")[1] for key in made}
    assert {key.split("/")[0] for key in made} == {"datasets", "models", "inferences"}
    assert {dataset["s3_key"], model["s3_key"], result["output_image_s3_key"]} <= made

    for path in (f"inferences/{result['id']}/", f"models/{model['id']}/", f"datasets/{dataset['id']}/"):
        platform.request("DELETE", path, expect=204)
        platform.request("GET", path, expect=404)
    assert platform.media() & made == set()
    left = [path for path in platform.folder.rglob("*") if path.name in owners]
    assert left == [], "the data folder still holds something of them"
    assert list((platform.folder / "tmp").iterdir()) == []
