"""Trains on many large pictures with a time budget: measures when the training ends, and how good its model is.

    python -m benchmarks.many_images [--images 1000] [--side 1024] [--budget 300]

The pictures look like stained tissue with two kinds of round cells (a PNG of one megapixel has 2 MB). They are drawn
from fixed seeds. The printed ratio is the time of the whole command divided by the budget. The model is scored on
pictures that it never saw.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

UNSEEN = 40


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_images")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--budget", type=int, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("seen", "unseen"):
            for kind in ("images", "masks"):
                (folder / part / kind).mkdir(parents=True)
        with ProcessPoolExecutor() as pool:
            list(pool.map(partial(draw, folder, given.images, given.side), range(given.images + UNSEEN), chunksize=10))
        begun = time.monotonic()
        ml_core("train", folder / "seen", f"--out={folder / 'model'}", f"--time-budget-seconds={given.budget}")
        seconds = time.monotonic() - begun
        size = f"{given.side} x {given.side}"
        print(f"{given.images} pictures of {size}, a budget of {given.budget} s: ended after {seconds:.0f} s, "
              f"ratio {seconds / given.budget:.3f} (aim: at most 1.1). On {UNSEEN} unseen pictures:")  # fmt: skip
        ml_core("evaluate", folder / "unseen", f"--model={folder / 'model' / 'model.zip'}")


def ml_core(command: str, data: Path, *arguments: str) -> None:
    folders = [f"--images={data / 'images'}", f"--masks={data / 'masks'}"]
    line = [sys.executable, "-m", "ml_core", command, *folders, *arguments]
    subprocess.run(line, check=True)


def draw(folder: Path, seen: int, side: int, number: int) -> None:
    """Draw an RGB picture and its mask, in which 1 is a dark cell and 2 a reddish one."""
    rng = np.random.default_rng(number)
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    for _ in range(rng.integers(20, 60)):
        (x, y), (a, b) = rng.integers(0, side, 2), rng.integers(10, 32, 2)
        pen.ellipse((int(x - a), int(y - b), int(x + a), int(y + b)), fill=1 if rng.random() < 0.75 else 2)
    labels = np.asarray(mask)
    stain = ndimage.zoom(rng.normal(size=(16, 16)), side / 16, order=1)[..., None] * (12, 14, 10)
    grain = ndimage.gaussian_filter(rng.normal(size=(side, side)), 2)[..., None] * (24, 32, 20)
    cells = ndimage.gaussian_filter((labels > 0).astype(float), 2)[..., None] * (70, 70, 30) * rng.uniform(0.6, 1.1)
    red = ndimage.gaussian_filter((labels == 2).astype(float), 3)[..., None] * (35, 0, -5)
    picture = np.array((200, 150, 190)) + stain + grain - cells + red + rng.normal(0, 6, (side, side, 3))
    place = folder / ("seen" if number < seen else "unseen")
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(place / "images" / f"tile_{number:05d}.png")
    mask.save(place / "masks" / f"tile_{number:05d}.png")


if __name__ == "__main__":
    main()
