"""Compares trainings with an equal time budget: all peers get the same files, and are scored on the same unseen files.

    python -m benchmarks.peers ARCHIVE.zip... --budget 300 --peers nnunet plain plain_bf16 monai ours \
        [--out var/peers] [--threads 2] [--python-nnunet peers-env/bin/python]
    python -m benchmarks.peers --table var/peers/results.jsonl

Peers run one after the other, each in a process of its own with the same number of threads. When a peer is done, its
row is printed and added to results.jsonl. The module of a peer describes its setup and what its clock includes;
nnunet.py also says how to make nnU-Net's environment. Units/s counts the time of the steps, including their waits for
data. Time outside the budget, such as nnU-Net's planning and preprocessing, has its own column. Memory is the peak of
the process tree during training: the sum of RSS, sampled every 0.5 s, and in brackets the sum of PSS, which counts
shared pages once, every 5 s.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import common, measuring, nnunet, scoring

HEAD = (
    "| peer | trained | units/s | class: Dice / HD95 | memory | predicted | outside the budget |\n"
    "|---|---|---|---|---|---|---|"
)
MODULES = {"plain": "plain", "plain_bf16": "plain", "monai": "monai_tutorial", "ours": "ours"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Training with equal budgets.")
    parser.add_argument("archives", type=Path, nargs="*", help="ZIPs with images and masks")
    parser.add_argument("--budget", type=int, default=300, help="seconds of training")
    parser.add_argument("--peers", nargs="+", choices=["nnunet", *MODULES], default=["nnunet", *MODULES])
    parser.add_argument("--out", type=Path, default=Path("var/peers"), help="models, logs and results.jsonl")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--python-nnunet", type=Path, help="Python with nnunetv2 2.8.1 (see nnunet.py)")
    parser.add_argument("--nnunet-no-mirroring", action="store_true", help="predict once, not on mirrored copies too")
    parser.add_argument("--table", type=Path, help="only print the table of an earlier results.jsonl")
    given = parser.parse_args()
    if given.table:
        table(given.table)
        return
    if "nnunet" in given.peers and not given.python_nnunet:
        parser.error(f"nnunet needs --python-nnunet\n{nnunet.__doc__}")
    for archive in given.archives:
        folder = given.out.resolve() / archive.stem
        shutil.rmtree(folder / "data", ignore_errors=True)
        task = common.prepare(archive, folder / "data")
        print(heading({"task": task.name, "split": task.split, "budget": given.budget}), HEAD, sep="\n", flush=True)
        for peer in given.peers:
            result = compete(peer, task, folder / f"{peer}_{given.budget}", given)
            with (given.out / "results.jsonl").open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(row(result), flush=True)


def compete(peer: str, task: common.Task, out: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Train and predict in a process of its own, then score. If the peer fails, the result has the key "failed"."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    result: dict[str, Any] = {"task": task.name, "split": task.split, "budget": given.budget, "peer": peer}
    result |= {"threads": given.threads, "at": time.strftime("%Y-%m-%d %H:%M")}
    started = time.monotonic()
    if peer == "nnunet":
        nnunet.write_raw(task, out)
        result["convert_seconds"] = time.monotonic() - started
        command = [str(given.python_nnunet), "-m", "benchmarks.peers.nnunet_driver", str(out), str(out)]
        command += ["--configuration", "2d" if task.dimensions == 2 else "3d_fullres", "--threads", str(given.threads)]
        command += ["--no-mirroring"] if given.nnunet_no_mirroring else []
    else:
        command = [sys.executable, "-m", f"benchmarks.peers.{MODULES[peer]}", str(task.file), str(out)]
        command += ["--bf16"] if peer == "plain_bf16" else []
    status, samples = measuring.run([*command, "--budget", str(given.budget)], out / "log.txt", given.threads)
    result["process_seconds"] = time.monotonic() - started
    if status or not (out / "report.json").exists():
        return {**result, "failed": f"exit status {status}, see {out.name}/log.txt"}
    report = json.loads((out / "report.json").read_text())
    start, end = report["train_started"], report["train_started"] + report["train_seconds"]
    for name, column in (("rss", 1), ("pss", 2)):
        result[f"{name}_training"] = max((s[column] for s in samples if start <= s[0] <= end), default=0)
        result[f"{name}_all"] = max((s[column] for s in samples), default=0)
    try:
        if peer == "nnunet":
            nnunet.read_predictions(task, out, out)
        return {**result, **report, **scoring.score(task, out / "predictions")}
    # A case has no prediction, or a prediction has labels that the task lacks.
    except (OSError, ValueError) as error:
        return {**result, **report, "failed": str(error)}


def heading(result: dict[str, Any]) -> str:
    return f"\n### {result['task']}, {result['budget']} s\n\n{result['split']}\n"


def row(result: dict[str, Any]) -> str:
    """One line of the Markdown table."""
    if "failed" in result:
        return f"| {result['peer']} | failed: {result['failed']} | | | | | |"
    classes = []
    for item in result["classes"]:
        counts = "".join(f", {item[name]} {name}" for name in ("misses", "undefined") if item[name])
        numbers = "–" if item["dice"] is None else f"{item['dice']:.3f} / {item['hd95']:.1f} {result['unit']}"
        classes.append(f"{item['value']}: {numbers}{counts}")
    speed = f"{result['units_per_second']:.2f} {result['unit_learned']}"
    outside = "; ".join(f"{name} {seconds:.0f} s" for name, seconds in result.get("overhead", {}).items()) or "–"
    return (
        f"| {result['peer']} | {result['train_seconds']:.0f} s | {speed} | {'; '.join(classes)} "
        f"| {result['rss_training'] / 1e9:.1f} ({result['pss_training'] / 1e9:.1f}) GB "
        f"| {result['predict_seconds']:.0f} s | {outside} |"
    )


def table(path: Path) -> None:
    """Print the results in a results.jsonl as tables, in their order."""
    printed = None
    for line in path.read_text().splitlines():
        result = json.loads(line)
        if (result["task"], result["budget"]) != printed:
            printed = (result["task"], result["budget"])
            print(heading(result), HEAD, sep="\n")
        print(row(result))


if __name__ == "__main__":
    main()
