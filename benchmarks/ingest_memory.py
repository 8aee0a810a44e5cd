"""Measures the peak memory of each process of a running platform while a large ZIP is uploaded and checked.

    python -m benchmarks.ingest_memory http://127.0.0.1:8000 var 1024

The arguments are the platform's address, its data folder (by which its processes are found) and the size of the ZIP in
MB. The ratio is the peak divided by the memory before the upload.
"""

from __future__ import annotations

import io
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.client import Platform

SIDE = 1024


def write_archive(path: Path, megabytes: int) -> int:
    """Write pairs of a noisy PNG of about 1 MB and a mask, until the ZIP is large enough; returns how many pairs."""
    rng, count = np.random.default_rng(0), 0
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[200:700, 300:800] = 255
    with zipfile.ZipFile(path, "w") as archive:
        while path.stat().st_size < megabytes * 2**20:
            for folder, array in (("images", rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)), ("masks", mask)):
                buffer = io.BytesIO()
                Image.fromarray(array).save(buffer, "PNG", compress_level=1)
                archive.writestr(f"{folder}/{count:05d}.png", buffer.getvalue())
            count += 1
    return count


def processes(data_dir: Path) -> dict[str, list[psutil.Process]]:
    """The processes of the platform that runs on this data folder, by the name of their kind."""
    groups: dict[str, list[psutil.Process]] = {"web": [], "ingest": [], "infer": [], "train": []}
    for process in psutil.process_iter():
        try:
            if process.environ().get("MEDSEG_RUN_DIR") != str(data_dir.resolve()):
                continue
            line = " ".join(process.cmdline())
        except (psutil.Error, OSError):
            continue
        if "uvicorn" in line:
            groups["web"].append(process)
        for name in ("ingest", "infer", "train"):
            if f"-n {name}" in line:
                groups[name].append(process)
    return groups


def main(url: str, data_dir: Path, megabytes: int) -> None:
    platform, groups = Platform(url), processes(data_dir)
    if not groups["web"]:
        raise SystemExit(f"No platform runs on the data folder {data_dir}. Start one, or give another folder.")
    peaks = dict.fromkeys(groups, 0)
    stop = threading.Event()

    def rss(name: str) -> int:
        return sum(process.memory_info().rss for process in groups[name] if process.is_running())

    def watch() -> None:
        while not stop.wait(0.05):
            for name in groups:
                peaks[name] = max(peaks[name], rss(name))

    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "large.zip"
        pairs = write_archive(archive, megabytes)
        before = {name: rss(name) for name in groups}
        threading.Thread(target=watch, daemon=True).start()
        started = time.monotonic()
        dataset = platform.upload(archive, "large")
        uploaded = time.monotonic() - started
        platform.wait(f"/datasets/{dataset}/")
        checked = time.monotonic() - started - uploaded
        stop.set()
        size = archive.stat().st_size / 2**20
    print(f"{size:.0f} MB, {pairs} pairs of {SIDE} x {SIDE}: upload {uploaded:.1f} s, check {checked:.1f} s")
    print("| process | before | peak | ratio |\n|---|---|---|---|")
    for name in (name for name in groups if before[name]):
        print(
            f"| {name} | {before[name] / 2**20:.0f} MB | {peaks[name] / 2**20:.0f} MB | {peaks[name] / before[name]:.2f} |"
        )
    platform.session.delete(f"{platform.api}/datasets/{dataset}/", timeout=60).raise_for_status()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
