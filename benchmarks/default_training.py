"""Takes each dataset from its upload to a segmented image with all defaults, and measures quality and time.

    python -m benchmarks.default_training http://127.0.0.1:8000 ../shared/data/*.zip

The arguments are the platform's address and the archives. Prints a row of Markdown for each archive. The segmented
image is one that the model never learned from, and is scored against its mask. Times are wall-clock times, whatever
else the machine does.
"""

from __future__ import annotations

import sys
import time
import zipfile
from pathlib import Path
from typing import Any

from benchmarks.client import Platform
from ml_core.dataset.pairing import find_pairs


def main(url: str, archives: list[Path]) -> None:
    platform = Platform(url)
    print(
        "| dataset | pairs | check | training | epochs | held-out Dice (95 %) | per class: Dice / HD95 | one new image |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for archive in archives:
        print(row(platform, archive), flush=True)


def row(platform: Platform, archive: Path) -> str:
    """Upload, train and segment; returns the row of the table."""
    started = time.monotonic()
    dataset = platform.wait(f"/datasets/{platform.upload(archive, archive.stem)}/")
    checked = time.monotonic() - started
    model_id = platform.train(dataset["id"], archive.stem)
    started = time.monotonic()
    model = platform.wait(f"/models/{model_id}/")
    trained = time.monotonic() - started
    metrics = model["metrics"]
    epochs = platform.get(f"/models/{model_id}/epochs/")["count"]
    low, high = metrics["ci95"]["dice"]
    unit = metrics["unit"]
    classes = "; ".join(f"{c['name']} {shown(c['dice'])} / {shown(c['hd95'], 1)} {unit}" for c in metrics["per_class"])
    inference = segment_held_out(platform, archive, model)
    return (
        f"| {archive.stem} | {dataset['file_count']} | {checked:.1f} s | {trained:.0f} s | {epochs} "
        f"| {shown(metrics['dice'])} ({shown(low)}–{shown(high)}; {metrics['n_cases']} {metrics['evaluated_on']} cases) "
        f"| {classes} "
        f"| {inference['image_name']}: Dice {shown(inference['metrics']['dice'])} in {inference['seconds']:.2f} s |"
    )


def segment_held_out(platform: Platform, archive: Path, model: dict[str, Any]) -> dict[str, Any]:
    """Segment one of the held-out images with its mask as the reference, and return the inference."""
    held_out = {case["name"] for case in model["metrics"]["per_case"]}
    with zipfile.ZipFile(archive) as source:
        pairs = {pair.name: pair for pair in find_pairs(source.namelist()).pairs}
        pair = pairs[sorted(held_out)[len(held_out) // 2]]
        files = {"image": pair.image[0], "mask": pair.mask}
        result: dict[str, Any] = platform.segment(
            model["id"], {field: (name.rpartition("/")[2], source.read(name)) for field, name in files.items()}
        )
    return result


def shown(value: float | None, digits: int = 3) -> str:
    return "undefined" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main(sys.argv[1], [Path(name) for name in sys.argv[2:]])
