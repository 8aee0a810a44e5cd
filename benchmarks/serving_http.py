"""One image through the API, warm: the whole request beside the bare forward of the same model in this process.

    python -m benchmarks.serving_http http://127.0.0.1:8000 MODEL IMAGE [--requests 20]

MODEL is the id of a completed model. Prints Markdown: medians after three warm-ups, first one client (its requests and the
in-process forwards take turns), then four clients at once. A request waits for its end (`Prefer: wait=60`); each opens a row, stores
image and label map, and is answered with the finished row. Target: at most 1.25 x forward + 25 ms; throughput with four clients
not below that of one.
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
    """The model's package from the API, as anybody who exports it gets it."""
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
