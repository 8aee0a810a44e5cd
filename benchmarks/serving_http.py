"""Compares the time of an inference through the API with that of the same model in this process.

    python -m benchmarks.serving_http http://127.0.0.1:8000 MODEL IMAGE [--requests 20]

MODEL is the id of a completed model. Prints Markdown with medians, after three warm-ups. First there is one client,
whose requests take turns with predictions in this process; then there are four clients at once. Each request waits
until the inference has ended (`Prefer: wait=60`), so it includes opening a row and storing image and label map. The
target is at most 1.25 x prediction + 25 ms, and that four clients get at least as many inferences per second as one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from benchmarks.client import Platform
from ml_core.io import read_image
from ml_core.prediction.predictor import Predictor

WARM_UPS = 3
CLIENTS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("model", type=int)
    parser.add_argument("image", type=Path)
    parser.add_argument("--requests", type=int, default=20)
    options = parser.parse_args()
    platform = Platform(options.url)
    predictor, image, content = load(platform, options.model), read_image(options.image), options.image.read_bytes()

    def send(session: requests.Session) -> Any:
        answer = session.post(
            f"{platform.api}/inferences/",
            data={"model": options.model},
            files={"image": (options.image.name, content)},
            headers={"Prefer": "wait=60"},
            timeout=120,
        )
        answer.raise_for_status()
        assert answer.json()["status"] == "completed", answer.text
        return answer.json()

    forwards, whole, worker = [], [], []
    for turn in range(WARM_UPS + options.requests):
        forward, _ = timed(lambda: predictor.predict(image))
        seconds, row = timed(lambda: send(platform.session))
        if turn >= WARM_UPS:
            forwards.append(forward)
            whole.append(seconds)
            worker.append(row["seconds"])
    bare, request = (statistics.median(times) * 1e3 for times in (forwards, whole))
    print(
        "| clients | forward in process, ms | in the worker, ms | request, ms | 1.25 x forward + 25 ms | requests/s |"
    )
    print("|---|---|---|---|---|---|")
    inside = statistics.median(worker) * 1e3
    print(f"| 1 | {bare:.1f} | {inside:.1f} | {request:.1f} | {1.25 * bare + 25:.1f} | {len(whole) / sum(whole):.2f} |")

    def client(_: int) -> list[float]:
        with requests.Session() as session:
            return [timed(lambda: send(session))[0] for _ in range(max(1, options.requests // 2))]

    with ThreadPoolExecutor(CLIENTS) as pool:
        seconds, every = timed(lambda: [time for times in pool.map(client, range(CLIENTS)) for time in times])
    request = statistics.median(every) * 1e3
    print(f"| {CLIENTS} | | | {request:.1f} | | {len(every) / seconds:.2f} |")


def load(platform: Platform, model: int) -> Predictor:
    """Load the model from the package that the API gives for download."""
    answer = platform.session.get(f"{platform.api}/models/{model}/download/", timeout=600)
    answer.raise_for_status()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.zip"
        path.write_bytes(answer.content)
        return Predictor.load(path)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
