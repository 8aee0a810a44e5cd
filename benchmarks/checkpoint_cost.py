"""Measures what checkpoints cost a training, by training the same epochs with and without them in turn.

    python -m benchmarks.checkpoint_cost [--rounds 5] [--encoder resnet34]

This is the worst case: a U-Net with a large state (ResNet-34: 390 MB with Adam's moments and the average) and short
epochs. One training warms up; each of the others has 10 epochs. The first time ends with the last epoch, and shows how
much checkpoints slow the epochs. The second time includes the last checkpoint, which is always written. The printed
ratio is the median over the pairs of trainings.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image as PILImage

from ml_core.cases.store import StoredCase, open_store
from ml_core.dataset.case import Case
from ml_core.dataset.classes import LabelClass
from ml_core.dataset.fingerprint import FingerprintBuilder
from ml_core.io import read_image, read_mask
from ml_core.planning.plan import Machine, Plan
from ml_core.planning.request import TrainingRequest
from ml_core.planning.rules import make_plan
from ml_core.training.events import EpochEnded, Event
from ml_core.training.state import Checkpoints
from ml_core.training.trainer import fit

CLASSES: list[LabelClass] = [
    {"value": 0, "name": "ground", "color": "#000000"},
    {"value": 1, "name": "disc", "color": "#ff0000"},
]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint_cost")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--encoder", default="resnet34")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plan, stored = prepare(Path(folder), given.encoder)
        seconds(plan, stored, Path(folder), checkpoints=True)
        pairs = [
            (
                seconds(plan, stored, Path(folder), checkpoints=True),
                seconds(plan, stored, Path(folder), checkpoints=False),
            )
            for _ in range(given.rounds)
        ]
    print(
        "| epochs with checkpoints, s | without | ratio | whole with checkpoints, s | without | ratio |\n"
        "|---|---|---|---|---|---|"
    )
    for with_them, without in pairs:
        cells = [f"{a:.1f} | {b:.1f} | {a / b:.3f}" for a, b in zip(with_them, without, strict=True)]
        print(f"| {' | '.join(cells)} |")
    epochs, whole = (statistics.median(a[part] / b[part] for a, b in pairs) for part in (0, 1))
    print(f"median ratios: epochs {epochs:.3f} (aim: at most 1.03), with the last checkpoint {whole:.3f}")


def prepare(folder: Path, encoder: str) -> tuple[Plan, list[StoredCase]]:
    """Draw 12 pictures of a disc, and decode them into a store."""
    rng, builder, cases = np.random.default_rng(0), FingerprintBuilder(), []
    y, x = np.mgrid[:256, :256]
    for index in range(12):
        disc = ((y - 128) ** 2 + (x - 128) ** 2 < rng.uniform(40, 90) ** 2).astype(np.uint8)
        image, mask = folder / f"image{index}.png", folder / f"mask{index}.png"
        PILImage.fromarray((disc * 100 + rng.integers(0, 80, disc.shape)).astype(np.uint8)).save(image)
        PILImage.fromarray(disc).save(mask)
        values = read_mask(mask).values
        builder.add(
            read_image(image),
            values,
            dict(zip(*(part.tolist() for part in np.unique(values, return_counts=True)), strict=True)),
        )
        cases.append(Case(index, image.stem, image, mask))
    hyperparameters = {"architecture": "unet", "encoder": encoder, "epochs": 10, "batch_size": 4, "patch_size": 256}
    plan = make_plan(TrainingRequest.from_json(hyperparameters), builder.result(), CLASSES, Machine.here())
    return plan, open_store(folder / "store", cases, plan, lambda done, total: None)


def seconds(plan: Plan, stored: list[StoredCase], folder: Path, *, checkpoints: bool) -> tuple[float, float]:
    """Train, and return the seconds until the last epoch ended, and those of the whole training."""
    ends: list[float] = []

    def nothing(*args: Any, **kwargs: Any) -> None:
        pass

    def note(event: Event) -> None:
        if isinstance(event, EpochEnded):
            ends.append(time.perf_counter() - begun)

    with tempfile.TemporaryDirectory(dir=folder) as place:
        begun = time.perf_counter()
        with mock.patch.object(Checkpoints, "keep", Checkpoints.keep if checkpoints else nothing):
            fit(plan, stored[:10], stored[10:], Path(place), on_event=note, should_stop=lambda: False)
        return ends[-1], time.perf_counter() - begun


if __name__ == "__main__":
    main()
