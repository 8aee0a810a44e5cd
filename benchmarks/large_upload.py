"""Uploads a large file in Chromium, interrupts the upload in the middle and resumes it.

    python -m benchmarks.large_upload [--gigabytes 3] [--s3] [--shots FOLDER]

Starts a platform of its own; with `--s3` its objects lie in moto's server, which keeps them in memory. Makes a ZIP of
noise with a valid images/ and masks/ in it and uploads it on the page. Half-way, it closes the page and restarts the
platform. Then it chooses the same file again and waits until the dataset is ready. Prints Markdown: seconds, megabytes
a second, how many parts were sent again, and whether the checksums agree. The temporary folder (TMPDIR) needs room for
four times the size.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import psutil
from moto.server import ThreadedMotoServer
from playwright.sync_api import BrowserContext, Page, sync_playwright

from tests.browser.conftest import ARGUMENTS, PROGRAMS
from tests.e2e import drawings
from tests.platform import Platform, running_platform

BUCKET = "medseg-benchmark"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_REGION": "eu-central-1"}
# How long the page may take for a step, in milliseconds.
MINUTES = 30 * 60 * 1000


def make_archive(path: Path, size: int) -> str:
    """Write a ZIP with `size` bytes of noise to `path`, and return its SHA-256."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for seed in range(8):
            archive.writestr(f"images/case_{seed}.png", drawings.png(drawings.disc(seed)[0]))
            archive.writestr(f"masks/case_{seed}.png", drawings.mask_png(seed))
        left, number = size, 0
        while left > 0:
            with archive.open(f"raw/noise_{number:03d}.bin", "w") as out:
                for _ in range(64):
                    out.write(os.urandom(min(2**20, left)))
                    left -= min(2**20, left)
                    if not left:
                        break
            number += 1
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


@contextmanager
def bucket() -> Iterator[dict[str, str]]:
    """Start moto's server with a bucket, and give the settings of a platform that uses it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    store = boto3.resource(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=CREDENTIALS["AWS_REGION"],
    )
    where = {"LocationConstraint": CREDENTIALS["AWS_REGION"]}
    store.create_bucket(Bucket=BUCKET, CreateBucketConfiguration=where)
    yield {**CREDENTIALS, "S3_BUCKET_NAME": BUCKET, "AWS_ENDPOINT_URL": endpoint}
    server.stop()


def open_page(context: BrowserContext, archive: Path) -> Page:
    page = context.new_page()
    page.goto("/datasets/new/")
    page.get_by_label("ZIP file", exact=True).set_input_files(archive)
    return page


def shoot(page: Page, folder: Path | None, name: str) -> None:
    if folder:
        for width, height in ((1440, 900), (390, 844)):
            page.set_viewport_size({"width": width, "height": height})
            page.screenshot(path=folder / f"{name}-{width}.png", full_page=True)


def until_share(page: Page, share: float) -> float:
    """Wait until the page shows that this share has been sent. Returns the share that it shows."""
    page.wait_for_function(
        "share => document.querySelector('[data-progress] progress').value >= share", arg=share, timeout=MINUTES
    )
    return float(page.evaluate("document.querySelector('[data-progress] progress').value"))


def web_memory(platform: Platform) -> float:
    """The memory that the web process holds now, in MB."""
    processes = [process for process in platform.processes_of("uvicorn") if process.is_running()]
    return max((process.memory_info().rss for process in processes), default=0) / 2**20


def run(platform: Platform, archive: Path, sha256: str, shots: Path | None) -> list[tuple[str, str]]:
    """Upload the archive with an interruption. Returns the rows of the table: (step, what was measured)."""
    size = archive.stat().st_size
    program = next(found for name in PROGRAMS if (found := shutil.which(name)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        context = browser.new_context(base_url=platform.url, viewport={"width": 1440, "height": 900})
        page = open_page(context, archive)
        memory_before = web_memory(platform)
        begun = time.monotonic()
        page.get_by_role("tabpanel").get_by_role("button", name="Upload").click()
        until_share(page, 0.3)
        shoot(page, shots, "uploading")
        share = until_share(page, 0.5)
        first = time.monotonic() - begun
        memory = web_memory(platform)
        page.close()
        platform.stop()
        platform.start()
        upload = platform.get("uploads/?state=open")["results"][0]
        there = len(platform.get(f"uploads/{upload['id']}/parts/")["parts"])

        page = open_page(context, archive)
        page.locator("#from-file [data-earlier]").wait_for(state="visible")
        shoot(page, shots, "interrupted")
        sent: list[str] = []
        page.on("request", lambda request: sent.append(request.url) if request.method == "PUT" else None)
        begun = time.monotonic()
        page.get_by_role("tabpanel").get_by_role("button", name="Upload").click()
        page.wait_for_url(re.compile(r"/datasets/\d+/$"), timeout=MINUTES)
        second = time.monotonic() - begun
        memory = max(memory, web_memory(platform))
        begun = time.monotonic()
        row = platform.wait_until_ended(f"datasets/{page.url.rstrip('/').rpartition('/')[2]}/")
        browser.close()
    assert row["status"] == "ready", row["error"]
    assert row["checksum"] == sha256
    return [
        ("archive", f"{size / 2**30:.2f} GiB in {upload['part_count']} parts of {upload['part_size'] / 2**20:.0f} MiB"),
        (f"first part of the way, to {share:.0%}", f"{first:.1f} s, {share * size / 2**20 / first:.0f} MB/s"),
        ("parts kept when page and platform had been stopped", f"{there}"),
        ("the second part of the way, comparing the kept parts by checksum", f"{second:.1f} s"),
        ("parts sent in the second run", f"{len(sent)} (so {len(sent) + there - upload['part_count']} twice)"),
        ("from the last part until ready, with all checksums", f"{time.monotonic() - begun:.1f} s"),
        ("memory of the web process: before, and the most measured", f"{memory_before:.0f}, {memory:.0f} MB"),
        ("SHA-256 of the row and of the file", "equal"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--shots", type=Path, help="folder for pictures of the page at 1440 and 390 pixels")
    options = parser.parse_args()
    if options.shots:
        options.shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="medseg-large-") as folder:
        archive = Path(folder) / "large_set.zip"
        sha256 = make_archive(archive, int(options.gigabytes * 2**30))
        if options.s3:
            with bucket() as settings, running_platform(**settings) as platform:
                rows = run(platform, archive, sha256, options.shots)
        else:
            with running_platform() as platform:
                rows = run(platform, archive, sha256, options.shots)
    print(f"{'S3 (moto)' if options.s3 else 'local storage'}, {psutil.cpu_count()} cores\n")
    print("| step | measured |\n|---|---|")
    for step, measured in rows:
        print(f"| {step} | {measured} |")


if __name__ == "__main__":
    main()
