"""Compares the speed of a dataset's check with that of a plain upload of the same files by boto3 with 16 threads.

    python -m benchmarks.ingest_speed [--pairs 2000 20000] [--side 128] [--only local|s3]

The plain upload checks nothing, so it shows what the store and the machine can do. The store is moto's server, a
process of its own on this machine. Every measurement runs in a fresh process. "grown by" is its peak memory minus the
memory before the first pair, for anonymous memory and for mapped files. Mapped files matter because the signatures of
the images, which are compared in the end, lie in one. Prints Markdown.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

THREADS = 16
BUCKET = "ingest"
KEYS = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_REGION": "us-east-1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--only", choices=["local", "s3"])
    parser.add_argument("--measure", choices=["check", "upload"], help=argparse.SUPPRESS)
    parser.add_argument("--archive", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        {"check": check, "upload": upload}[options.measure](options.archive)
        return
    print("| pairs | storage | what | seconds | pairs/s | beside boto3 | grown by, MB: anonymous | mapped files |")
    print("|---|---|---|---|---|---|---|---|")
    for pairs in options.pairs:
        with tempfile.TemporaryDirectory(prefix="medseg-ingest-") as folder:
            archive = Path(folder) / "pairs.zip"
            write_archive(archive, pairs, options.side)
            plain = 0.0
            if options.only != "local":
                plain = row(pairs, "s3", "boto3, 16 threads, no check", "upload", archive, 0.0)
                row(pairs, "s3", "check", "check", archive, plain)
            if options.only != "s3":
                row(pairs, "local", "check", "check", archive, plain)
    print(f"\n{options.side} x {options.side} grey pixels; load of the machine {os.getloadavg()[0]:.1f}")


def write_archive(path: Path, pairs: int, side: int) -> None:
    """Write pairs to a ZIP: noisy pictures with a disc, no two alike, as PNG of about 12 KB at a side of 128."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side]
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(pairs):
            middle = rng.uniform(0.3, 0.7, 2) * side
            inside = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 < (side * rng.uniform(0.1, 0.3)) ** 2
            grey = (np.where(inside, 180, 60) + rng.normal(0, 12, (side, side))).clip(0, 255).astype(np.uint8)
            for kind, array in (("images", grey), ("masks", inside.astype(np.uint8) * 255)):
                buffer = io.BytesIO()
                Image.fromarray(array).save(buffer, "PNG", compress_level=1)
                archive.writestr(f"{kind}/{index:06d}.png", buffer.getvalue())


def row(pairs: int, storage: str, what: str, measure: str, archive: Path, plain: float) -> float:
    """Measure in a fresh process, print a row of the table, and return the pairs per second.

    measure: "check" or "upload". plain: the pairs per second of the plain upload; 0 if there are none.
    """
    with tempfile.TemporaryDirectory(prefix="medseg-ingest-data-") as folder:
        environment = {**os.environ, "MEDSEG_DATA_DIR": folder, "LOG_LEVEL": "ERROR"}
        for name in ("S3_BUCKET_NAME", "AWS_ENDPOINT_URL", "DATABASE_URL", *KEYS):
            environment.pop(name, None)
        server = None
        if storage == "s3":
            server, endpoint = start_store()
            environment |= {**KEYS, "S3_BUCKET_NAME": BUCKET, "AWS_ENDPOINT_URL": endpoint}
        command = [sys.executable, "-m", "benchmarks.ingest_speed", "--measure", measure, "--archive", str(archive)]
        try:
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        finally:
            if server:
                server.kill()
                server.wait()
    if ended.returncode:
        raise SystemExit(ended.stderr[-3000:])
    measured = json.loads(ended.stdout.splitlines()[-1])
    speed: float = pairs / measured["seconds"]
    beside = f"{speed / plain:.2f}" if plain else "–"
    print(
        f"| {pairs:,} | {storage} | {what} | {measured['seconds']:.1f} | {speed:.0f} | {beside} "
        f"| {measured['anonymous']:.0f} | {measured['mapped']:.0f} |",
        flush=True,
    )
    return speed


def start_store() -> tuple[subprocess.Popen[bytes], str]:
    """Start moto's server; returns its process and its address."""
    from tests.environment import free_port

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://127.0.0.1:{port}/moto-api/")
            break
        except OSError:
            time.sleep(0.1)
    return server, f"http://127.0.0.1:{port}"


def client() -> Any:
    """An S3 client of the store, with a new bucket."""
    import boto3
    from botocore.config import Config

    store = boto3.client(
        "s3",
        endpoint_url=os.environ["AWS_ENDPOINT_URL"],
        aws_access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        region_name=os.environ["AWS_REGION"],
        config=Config(max_pool_connections=THREADS, s3={"addressing_style": "path"}),
    )
    store.create_bucket(Bucket=BUCKET)
    return store


def upload(archive: Path) -> None:
    """Upload every file of the archive as an object, from a folder."""
    store = client()
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(archive) as files:
            files.extractall(folder)
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())

        def send() -> None:
            with ThreadPoolExecutor(THREADS) as pool:
                for done in [
                    pool.submit(store.upload_file, str(path), BUCKET, str(path.relative_to(folder))) for path in paths
                ]:
                    done.result()

        report(send)


def check(archive: Path) -> None:
    """Check a dataset as a worker does, but without the queue: from the stored archive to the row that is ready."""
    if os.environ.get("AWS_ENDPOINT_URL"):
        client()
    os.environ["DJANGO_SETTINGS_MODULE"] = "medseg_site.settings"
    import django

    django.setup()
    from django.core.management import call_command

    from accounts.services import personal_project
    from datasets.check import check as check_dataset
    from datasets.models import Dataset
    from medseg_site.shared.base.local_user import local_user
    from medseg_site.shared.storage import objects as storage

    call_command("migrate", verbosity=0)
    dataset = Dataset.objects.create(project=personal_project(local_user()), name="pairs", status="uploaded")
    stored = storage.store_file(storage.object_key("datasets", dataset.uuid, "archive.zip"), archive)
    Dataset.objects.filter(pk=dataset.pk).update(s3_key=stored.key, checksum=stored.sha256)
    report(lambda: check_dataset(dataset.pk))
    dataset.refresh_from_db()
    assert dataset.status == "ready", dataset.error


def report(work: Callable[[], object]) -> None:
    """Do the work, and print as JSON its seconds and by how many MB the memory of this process grew."""

    def memory() -> tuple[int, int]:
        now = psutil.Process().memory_info()
        return now.rss - now.shared, now.shared

    before = memory()
    peak, stop = list(before), threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            peak[:] = [max(pair) for pair in zip(peak, memory(), strict=True)]

    threading.Thread(target=watch, daemon=True).start()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    stop.set()
    anonymous, mapped = ((highest - first) / 2**20 for highest, first in zip(peak, before, strict=True))
    print(json.dumps({"seconds": seconds, "anonymous": anonymous, "mapped": mapped}))


if __name__ == "__main__":
    main()
