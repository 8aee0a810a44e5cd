"""Compares the images per second of the platform's training with those of a bare loop.

    python -m benchmarks.training_speed isbi2012_membrane.zip [rounds] [--hyperparameter value ...]

The bare loop has the same network, precision, batch and loss, but its tensors are in memory already. Both run in turn,
so that a noisy machine slows both. The figures are medians over the rounds. The platform's figure is for whole steps:
drawing, augmentation, forward, backward, clipping, optimizer, average of the weights. The first epoch and the bare
loop's first steps warm up and are not counted. A second figure includes validation and checkpoints.
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import torch

from ml_core.cases.patches import PatchSampler
from ml_core.cases.store import StoredCase, open_store
from ml_core.dataset.folders import describe, find_cases
from ml_core.memory import restart_tuned
from ml_core.networks.catalogue import build
from ml_core.networks.device import autocast, pick_device
from ml_core.planning.hyperparameters import specs
from ml_core.planning.plan import Machine, Plan
from ml_core.planning.request import TrainingRequest
from ml_core.planning.rules import make_plan
from ml_core.training.events import EpochEnded, Event, Progress
from ml_core.training.losses import make_loss
from ml_core.training.optimizers import make_optimizers
from ml_core.training.trainer import fit

WARM_UP, BATCHES_IN_MEMORY = 2, 4
EPOCHS = 5


def main(archive: Path, rounds: int, hyperparameters: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(archive) as source:
            source.extractall(folder)
        cases = find_cases(folder / "images", folder / "masks", print)
        data = describe(cases, print, lambda done, total: None)
        plan = make_plan(
            TrainingRequest.from_json({**hyperparameters, "epochs": EPOCHS}),
            data.fingerprint,
            data.classes,
            Machine.here(),
        )
        stored = open_store(folder / "store", data.cases, plan, lambda done, total: None)
        cut = max(1, len(stored) // 5)
        bare, steps, whole = [], [], []
        # The first round warms up.
        for index in range(rounds + 1):
            count, of_steps, of_all = platform(plan, stored[cut:], stored[:cut], folder / f"run{index}")
            of_bare = bare_loop(plan, stored[cut:], count * (EPOCHS - 1))
            if index:
                bare.append(of_bare)
                steps.append(of_steps)
                whole.append(of_all)
    report(archive.stem, plan, bare, steps, whole)


def platform(plan: Plan, train: list[StoredCase], val: list[StoredCase], folder: Path) -> tuple[int, float, float]:
    """Train with the platform: (steps per epoch, images/s of the steps, images/s with validation and checkpoints)."""
    folder.mkdir()
    events: list[Event] = []
    fit(plan, train, val, folder, on_event=events.append, should_stop=lambda: False)
    epochs = [event.point for event in events if isinstance(event, EpochEnded)][1:]
    steps = max(event.step for event in events if isinstance(event, Progress)) // EPOCHS
    alone = statistics.harmonic_mean([epoch.images_per_second for epoch in epochs])
    return steps, alone, statistics.harmonic_mean([steps * plan.batch_size / epoch.seconds for epoch in epochs])


def bare_loop(plan: Plan, train: list[StoredCase], steps: int) -> float:
    """Train with the fewest operations, on a few batches in memory: images/s."""
    device = pick_device()
    layout = torch.channels_last_3d if len(plan.patch) == 3 else torch.channels_last
    network, _ = build(
        plan.architecture,
        encoder=plan.encoder,
        channels=plan.in_channels,
        classes=len(plan.class_values),
        arguments=plan.network,
    )
    # PyTorch's types lack `memory_format` here.
    network = network.to(device, memory_format=layout).train()  # type: ignore[call-overload]
    optimizers = make_optimizers(network, plan)
    loss_of = make_loss(plan.loss).to(device)
    sampler = PatchSampler(train, plan)
    batches = [[array.to(device) for array in sampler.batch(n)] for n in range(BATCHES_IN_MEMORY)]
    batches = [[images.contiguous(memory_format=layout), labels.long()] for images, labels in batches]
    begun = time.perf_counter()
    for step in range(steps + WARM_UP):
        if step == WARM_UP:
            _wait(device)
            begun = time.perf_counter()
        images, labels = batches[step % BATCHES_IN_MEMORY]
        with autocast(device, plan.precision):
            logits = network(images)
        loss = loss_of(logits, labels)
        network.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    _wait(device)
    return steps * plan.batch_size / (time.perf_counter() - begun)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def report(name: str, plan: Plan, bare: list[float], steps: list[float], whole: list[float]) -> None:
    ratios = [ours / theirs for ours, theirs in zip(steps, bare, strict=True)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    patch = " x ".join(str(size) for size in plan.patch)
    print(
        "| dataset | network | patch, batch | bare loop | platform: steps | ratio "
        "| with validation and checkpoints | peak RSS |"
    )
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {name} | {plan.architecture}, {plan.encoder} | {patch}, {plan.batch_size} | {statistics.median(bare):.2f}/s "
        f"| {statistics.median(steps):.2f}/s | {statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f}) "
        f"| {statistics.median(whole):.2f}/s | {peak:.2f} GB |"
    )


if __name__ == "__main__":
    restart_tuned()
    given, options = [], {}
    arguments = iter(sys.argv[1:])
    for argument in arguments:
        if argument.startswith("--"):
            key = argument[2:].replace("-", "_")
            options[key] = specs()[key].type(next(arguments))
        else:
            given.append(argument)
    main(Path(given[0]), int(given[1]) if len(given) > 1 else 5, options)
