"""Puts a load of many clients on a platform with SQLite: measures each kind of request, and counts errors.

    python -m benchmarks.load [--clients 200] [--seconds 60]

Starts `scripts/run.py` in a temporary folder, and makes a dataset and a tiny model. Then every client sends one request
after the other for the given time: lists, details, pages, thumbnails, uploads of small datasets, and inferences with
and without waiting for the result. Clients, web process and workers share the machine's cores. Prints Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.e2e import drawings
from tests.platform import Platform, running_platform

# How many of 100 requests are of each kind. Most requests only read.
WEIGHTS = {
    "list": 25,
    "detail": 20,
    "page": 15,
    "thumbnail": 25,
    "inference": 9,
    "inference, waiting": 3,
    "upload of a dataset": 3,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    with running_platform() as platform:
        scene = prepare(platform)
        load = os.getloadavg()[0]
        asyncio.run(scene.run(options.clients, options.seconds))
        show(scene, options.clients, options.seconds, load)
        locked = sum(len(re.findall("database is locked", text_of(platform, name))) for name in LOGS)
        print(f'\n"database is locked" in the logs: {locked}')
        started = time.monotonic()
        left = wait_for_work(platform)
        print(f"rows left to work on when the clients stopped: {left}, done {time.monotonic() - started:.0f} s later")


LOGS = ("web", "infer", "ingest", "train", "beat")


def text_of(platform: Platform, name: str) -> str:
    return platform.log(name)


@dataclass
class Scene:
    """The addresses and files that the clients use, and the measured times and status codes of each kind of request."""

    url: str
    lists: list[str]
    details: list[str]
    pages: list[str]
    thumbnails: list[str]
    model: int
    image: bytes
    archive: bytes
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    codes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    async def run(self, clients: int, seconds: float) -> None:
        limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
        timeout = httpx2.Timeout(120)
        async with httpx2.AsyncClient(base_url=self.url, limits=limits, timeout=timeout, trust_env=False) as http:
            until = time.monotonic() + seconds
            await asyncio.gather(*(self._client(http, until, number) for number in range(clients)))

    async def _client(self, http: Any, until: float, number: int) -> None:
        choice = random.Random(number)
        await asyncio.sleep(choice.random())
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "list": lambda: http.get(choice.choice(self.lists)),
            "detail": lambda: http.get(choice.choice(self.details)),
            "page": lambda: http.get(choice.choice(self.pages)),
            "thumbnail": lambda: http.get(choice.choice(self.thumbnails)),
            "inference": lambda: self._infer(http, {}),
            "inference, waiting": lambda: self._infer(http, {"Prefer": "wait=30"}),
            "upload of a dataset": lambda: http.post(
                "/api/v1/datasets/", data={"name": f"load {number}"}, files={"archive": ("a.zip", self.archive)}
            ),
        }
        while time.monotonic() < until:
            (kind,) = choice.choices(list(WEIGHTS), weights=list(WEIGHTS.values()))
            started = time.monotonic()
            try:
                answer = await calls[kind]()
                code = str(answer.status_code)
            except httpx2.HTTPError as error:
                code = type(error).__name__
            self.times[kind].append(time.monotonic() - started)
            self.codes[kind][code] += 1
            if code == "429":
                await asyncio.sleep(float(answer.headers["Retry-After"]))

    async def _infer(self, http: Any, headers: dict[str, str]) -> Any:
        return await http.post(
            "/api/v1/inferences/", data={"model": self.model}, files={"image": ("a.png", self.image)}, headers=headers
        )


def prepare(platform: Platform) -> Scene:
    dataset = platform.upload("Discs", drawings.png_dataset(pairs=24))
    model = platform.train("Discs", dataset, **drawings.TINY, epochs=2)
    assert model["status"] == "completed", model
    image = drawings.png(drawings.disc(100)[0])
    inference = platform.infer(model, "a.png", image)
    api, samples = "/api/v1", platform.get(f"datasets/{dataset['id']}/samples/")["results"]
    return Scene(
        url=platform.url,
        lists=[
            f"{api}/datasets/",
            f"{api}/datasets/{dataset['id']}/samples/",
            f"{api}/models/",
            f"{api}/inferences/",
            f"{api}/inference-batches/",
        ],
        details=[
            f"{api}/datasets/{dataset['id']}/",
            f"{api}/models/{model['id']}/",
            f"{api}/inferences/{inference['id']}/",
        ],
        pages=["/", "/datasets/", f"/datasets/{dataset['id']}/", "/models/", "/inferences/"],
        thumbnails=[row["thumbnail_url"].removeprefix(platform.url) for row in samples],
        model=model["id"],
        image=image,
        archive=drawings.png_dataset(pairs=3),
    )


def show(scene: Scene, clients: int, seconds: float, load: float) -> None:
    print(f"{clients} clients for {seconds:.0f} s; load of the machine before: {load:.1f}; {os.cpu_count()} cores\n")
    print("| request | number | median, s | p95, s | longest, s | answers |\n|---|---|---|---|---|---|")
    for kind in WEIGHTS:
        times = scene.times[kind]
        if len(times) < 2:
            continue
        p95 = statistics.quantiles(times, n=20)[18]
        answers = ", ".join(f"{code}: {count}" for code, count in sorted(scene.codes[kind].items()))
        print(f"| {kind} | {len(times)} | {statistics.median(times):.2f} | {p95:.2f} | {max(times):.2f} | {answers} |")
    total = sum(map(len, scene.times.values()))
    print(f"\n{total} requests, {total / seconds:.0f} a second")


def wait_for_work(platform: Platform) -> int:
    """Wait until no dataset is being checked and no inference is queued. Returns how many there were at first."""

    def waiting() -> int:
        words = {"datasets": ["uploaded"], "inferences": ["queued", "running"]}
        return sum(
            int(platform.get(f"{table}/?status={word}&page_size=1")["count"])
            for table, statuses in words.items()
            for word in statuses
        )

    first = waiting()
    for _ in range(600):
        if not waiting():
            break
        time.sleep(1)
    return first


if __name__ == "__main__":
    main()
