"""A small client of the platform's API, with the calls that the benchmarks need."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import requests


class Platform:
    """A running platform at `url`."""

    def __init__(self, url: str) -> None:
        self.api = url.rstrip("/") + "/api/v1"
        self.session = requests.Session()

    def get(self, path: str, **query: Any) -> Any:
        """The JSON at a path of the API."""
        answer = self.session.get(self.api + path, params=query, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def wait(self, path: str, seconds: float = 7200) -> Any:
        """Wait until a resource's work has ended, and return it. Raises RuntimeError if it fails or takes longer."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            row = self.get(path)
            if row["status"] in {"ready", "completed"}:
                return row
            if row["status"] in {"error", "failed", "cancelled"}:
                raise RuntimeError(f"{path}: {row['status']}: {row['error']}")
            time.sleep(1)
        raise RuntimeError(f"{path}: not done after {seconds} s")

    def upload(self, archive: Path, name: str) -> int:
        """Upload a ZIP as a dataset, and return its id."""
        with archive.open("rb") as source:
            files = {"archive": (archive.name, source)}
            answer = self.session.post(self.api + "/datasets/", data={"name": name}, files=files, timeout=3600)
        answer.raise_for_status()
        return int(answer.json()["id"])

    def train(self, dataset: int, name: str, **hyperparameters: Any) -> int:
        """Start the training of a model, and return its id."""
        body = {"name": name, "dataset": dataset, "hyperparameters": hyperparameters}
        answer = self.session.post(self.api + "/models/", json=body, timeout=60)
        answer.raise_for_status()
        return int(answer.json()["id"])

    def segment(self, model: int, files: dict[str, tuple[str, bytes]]) -> Any:
        """Segment an image, and return the finished inference. files: field (image, mask) → (file name, content)."""
        url = self.api + "/inferences/"
        answer = self.session.post(url, data={"model": model}, files=files, headers={"Prefer": "wait=60"}, timeout=120)
        answer.raise_for_status()
        return self.wait(f"/inferences/{answer.json()['id']}/")
