"""The peer "ours": trains and predicts with the command line of ml_core, given only the folders and the budget.

The clock includes the whole `train` command: imports, plan, decoding, training, validation, final evaluation, and
writing the package. The command holds back its own validation part from the training files.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("task", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget", type=int, required=True)
    given = parser.parse_args()
    data, model = given.task.parent, given.out / "model"
    base = [sys.executable, "-m", "ml_core"]
    wall, started = time.time(), time.monotonic()
    folders = ["--images", str(data / "train/images"), "--masks", str(data / "train/masks"), "--out", str(model)]
    subprocess.run([*base, "train", *folders, "--time-budget-seconds", str(given.budget)], check=True)
    trained = time.monotonic()
    unseen = sorted(str(path) for path in (data / "unseen/images").iterdir())
    out = str(given.out / "predictions")
    subprocess.run([*base, "predict", "--model", str(model / "model.zip"), "--out", out, *unseen], check=True)
    with (model / "curve.csv").open() as file:
        speeds = [float(epoch["images_per_second"]) for epoch in csv.DictReader(file)]
    plan = json.loads((model / "plan.json").read_text())
    report = {
        "unit_learned": f"crops of {plan['patch_size']}{'³' if plan['configuration'] == '3d' else '²'}",
        "units_per_second": sum(speeds) / len(speeds),
        "train_started": wall,
        "train_seconds": trained - started,
        "predict_seconds": time.monotonic() - trained,
    }
    (given.out / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
