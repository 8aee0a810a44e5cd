"""One platform for all end-to-end tests that need no other storage or database, and a trained model on it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Origin

from tests.e2e import drawings
from tests.platform import WORK_SECONDS, Json, Platform, running_platform


@pytest.fixture(scope="package")
def platform() -> Iterator[Platform]:
    with running_platform(MEDSEG_URL_IMPORT_ALLOW_PRIVATE="1") as platform:
        yield platform


@pytest.fixture(scope="package")
def dataset(platform: Platform) -> Json:
    return platform.upload("Discs", drawings.png_dataset())


class Listener(threading.Thread):
    """Everything that /ws/models/{id}/ says until the training has ended."""

    def __init__(self, platform: Platform, model_id: int) -> None:
        super().__init__(daemon=True)
        self.address = f"{platform.url.replace('http', 'ws')}/ws/models/{model_id}/"
        self.origin = Origin(platform.url)
        self.messages: list[Json] = []

    def run(self) -> None:
        with connect(self.address, origin=self.origin, proxy=None) as socket:
            try:
                while not self.messages or self.messages[-1].get("status") not in {"completed", "failed", "cancelled"}:
                    self.messages.append(json.loads(socket.recv(timeout=WORK_SECONDS)))
            except (ConnectionClosed, TimeoutError):
                return  # the tests see what is missing


@pytest.fixture(scope="package")
def watched_training(platform: Platform, dataset: Json) -> tuple[Json, list[Json]]:
    """A completed model, and what its WebSocket said meanwhile."""
    created = platform.start_training("Discs", dataset, **drawings.QUICK)
    listener = Listener(platform, created["id"])
    listener.start()
    model = platform.wait_until_ended(f"models/{created['id']}/")
    listener.join(timeout=10)
    return model, listener.messages


@pytest.fixture(scope="package")
def model(watched_training: tuple[Json, list[Json]]) -> Json:
    return watched_training[0]
