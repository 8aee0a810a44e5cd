"""Compares the time to segment a volume of 256 x 256 x 128 with that of common ways in PyTorch and MONAI.

    python -m benchmarks.volumes [rounds]

Slice by slice, the network is a U-Net with ResNet-34. In 3D, it is a U-Net of about 4.8 M weights in windows of 96³
with overlap 0.5. Ours is the whole of `Predictor.predict`: normalisation, OpenVINO, blending, certainty, label map. The
peers' figures are only their forward passes and blending. All run in turn, and the figures are median seconds.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from torch import nn

from ml_core.dataset.classes import LabelClass
from ml_core.dataset.fingerprint import FingerprintBuilder
from ml_core.io import Image
from ml_core.io.image import Grid
from ml_core.planning.plan import Machine, Plan
from ml_core.planning.request import TrainingRequest
from ml_core.planning.rules import make_plan
from ml_core.prediction.predictor import Predictor, network_of
from ml_core.prediction.runtimes import Forward, OpenVinoForward, TorchForward, convert

SHAPE = (128, 256, 256)
CLASSES: list[LabelClass] = [
    {"value": 0, "name": "background", "color": "#000"},
    {"value": 1, "name": "thing", "color": "#f00"},
]


def main(rounds: int) -> None:
    array = np.random.default_rng(0).normal(0, 1, (1, *SHAPE)).astype(np.float32)
    image = Image(array, (1.0, 1.0, 1.0), np.eye(4), "nifti", None, None, Grid(SHAPE[::-1], np.eye(4)))
    volume = torch.from_numpy(array[None])
    print("| volume | way | seconds | ratio to the best peer |\n|---|---|---|---|")
    flat = plan(image, configuration="2d", architecture="unet", encoder="resnet34")
    network = network_of(flat).to(memory_format=torch.channels_last)
    slices = volume[0, 0, :, None].contiguous()
    compare(
        "slice by slice, ResNet-34",
        {
            "PyTorch float32, batches of 8": partial(by_slices, network, slices, bf16=False),
            "PyTorch bf16 channels_last, batches of 8": partial(by_slices, network, slices, bf16=True),
        },
        ours(flat, network, image, (1, 1, 256, 256)),
        rounds,
    )
    deep = plan(image, configuration="3d", architecture="unet-3d", patch_size=96, patch_depth=96, spacing="1 1 1")
    cubes = network_of(deep)
    compare(
        f"windows of 96³, 3D U-Net, {sum(item.numel() for item in cubes.parameters()) / 1e6:.1f} M weights",
        {
            "MONAI sliding window, bf16, 1 at a time": partial(by_windows, cubes, volume, 1),
            "MONAI sliding window, bf16, 4 at a time": partial(by_windows, cubes, volume, 4),
        },
        ours(deep, cubes, image, (1, 1, 96, 96, 96)),
        rounds,
    )
    print(f"\nPeak RSS of the whole run: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2:.1f} GB")


def plan(image: Image, **hyperparameters: Any) -> Plan:
    """The plan for a dataset of this image, with the hyperparameters in `wanted`."""
    builder = FingerprintBuilder()
    values = np.zeros(image.shape, np.uint8)
    values[40:80, 80:160, 80:160] = 1
    builder.add(image, values, {0: int((values == 0).sum()), 1: int((values == 1).sum())})
    return make_plan(TrainingRequest.from_json(hyperparameters), builder.result(), CLASSES, Machine.here())


def ours(plan: Plan, network: nn.Module, image: Image, example: tuple[int, ...]) -> Callable[[], object]:
    """A prediction in the quicker runtime, which a training would choose too (ml_core.training.refinement)."""
    forwards: list[Forward] = [
        OpenVinoForward(*convert(network, torch.zeros(example)), plan.precision),
        TorchForward(network, plan.precision),
    ]
    predictors = [Predictor([forward], plan) for forward in forwards]
    for predictor in predictors:
        predictor.predict(image)
    quickest = min(predictors, key=lambda predictor: predictor.predict(image).seconds)
    print(f"ours: {type(quickest.forwards[0]).__name__}", file=sys.stderr)
    return lambda: quickest.predict(image)


@torch.inference_mode()
def by_slices(network: nn.Module, slices: torch.Tensor, *, bf16: bool) -> torch.Tensor:
    label_maps = []
    for batch in torch.split(slices, 8):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            layout = torch.channels_last if bf16 else torch.contiguous_format
            label_maps.append(network(batch.contiguous(memory_format=layout)).argmax(1))
    return torch.cat(label_maps)


@torch.inference_mode()
def by_windows(network: nn.Module, volume: torch.Tensor, at_once: int) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = sliding_window_inference(volume, (96, 96, 96), at_once, network, overlap=0.5, mode="gaussian")
    assert isinstance(logits, torch.Tensor)
    return logits.argmax(1)


def compare(name: str, peers: dict[str, Callable[[], object]], own: Callable[[], object], rounds: int) -> None:
    runs = {**peers, "ours, end to end": own}
    times: dict[str, list[float]] = {way: [] for way in runs}
    # The first round warms up.
    for index in range(rounds + 1):
        for way, run in runs.items():
            begun = time.perf_counter()
            run()
            if index:
                times[way].append(time.perf_counter() - begun)
    medians = {way: statistics.median(seconds) for way, seconds in times.items()}
    best = min(medians[way] for way in peers)
    for way, seconds in medians.items():
        print(f"| {name} | {way} | {seconds:.2f} | {seconds / best:.2f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
