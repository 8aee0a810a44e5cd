"""Compares the time of a forward pass on the CPU in each runtime with that of a plain matrix product.

    python -m benchmarks.serving [--rounds 5] [--only image|slices|windows]

Prints Markdown. Times are medians of the rounds, after two warm-ups. The runtimes of one table take turns, so that
other work of the machine slows all of them alike. "x product" is the time divided by that of as many operations in a
4096³ product of bf16 matrices in PyTorch, which takes its turns too; about 1 is the best that a network can reach.
"first" is the first call for a shape, in a runtime that has run other shapes. Weights are random, because they do not
change the time.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from monai.networks.nets.unet import UNet
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ml_core.networks.catalogue import build
from ml_core.prediction.runtimes import Forward, OpenVinoForward, TorchForward, convert

SIDE = 4096
WARM_UPS = 2
SLICES = [(1, 1, 256, 256), (4, 1, 256, 256), (8, 1, 256, 256), (16, 1, 256, 256), (4, 1, 512, 512)]
WINDOWS = [(1, 1, 96, 96, 96), (2, 1, 96, 96, 96), (4, 1, 96, 96, 96)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["image", "slices", "windows"])
    options = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    network = build("unet", encoder="resnet34", channels=1, classes=2)[0].eval()
    if options.only in {None, "image"}:
        table("U-Net/ResNet-34, one image", network, runtimes(network, 64), [(1, 1, 512, 512)], options.rounds)
    if options.only in {None, "slices"}:
        table("U-Net/ResNet-34, slices", network, quick(runtimes(network, 64)), SLICES, options.rounds)
    if options.only in {None, "windows"}:
        network = UNet(3, 1, 2, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2).eval()
        table("3D U-Net, windows of 96³", network, quick(runtimes(network, 32)), WINDOWS, options.rounds)


def runtimes(network: nn.Module, side: int) -> dict[str, Forward]:
    """The runtimes by name, each with a copy of the network. side: that of the small image used to convert it."""
    dimensions = 3 if isinstance(network, UNet) else 2
    started = time.perf_counter()
    model = convert(copy.deepcopy(network), torch.zeros(1, 1, *[side] * dimensions))
    print(f"\nconverted in {time.perf_counter() - started:.1f} s, {sum(map(len, model)) / 2**20:.1f} MB")
    return {
        "torch fp32 eager": plain(copy.deepcopy(network)),
        "torch bf16 channels_last": TorchForward(copy.deepcopy(network), "bf16"),
        "OpenVINO f32": OpenVinoForward(*model, "fp32"),
        "OpenVINO bf16": OpenVinoForward(*model, "bf16"),
    }


def quick(every: dict[str, Forward]) -> dict[str, Forward]:
    """Only the runtimes in bf16."""
    return {name: forward for name, forward in every.items() if "bf16" in name}


def plain(network: nn.Module) -> Forward:
    """The network in PyTorch, called without any preparation."""

    @torch.inference_mode()
    def forward(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: Tensor = network(torch.from_numpy(batch))
        return logits.numpy()

    return forward


def table(
    title: str, network: nn.Module, forwards: dict[str, Forward], shapes: Sequence[tuple[int, ...]], rounds: int
) -> None:
    weights = sum(tensor.numel() for tensor in network.parameters()) / 1e6
    print(f"\n### {title} ({weights:.1f} M weights)\n")
    print("| batch | runtime | first, ms | median, ms | ms each | x product |\n|---|---|---|---|---|---|")
    left, right = (torch.randn(SIDE, SIDE).bfloat16() for _ in range(2))
    for shape in shapes:
        batch = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        work = operations(network, torch.from_numpy(batch))
        calls: dict[str, Callable[[], object]] = {name: partial(run, batch) for name, run in forwards.items()}
        first = {name: timed(call) for name, call in calls.items()}
        times = medians({"product": lambda: left @ right, **calls}, rounds)
        rate = 2 * SIDE**3 / times.pop("product")
        for name, seconds in times.items():
            each, products = seconds * 1e3 / shape[0], seconds / (work / rate)
            text = f"{first[name] * 1e3:.0f} | {seconds * 1e3:.1f} | {each:.1f} | {products:.2f}"
            print(f"| {' x '.join(map(str, shape))} | {name} | {text} |", flush=True)
        print(f"| | bf16 product: {rate / 1e9:.0f} GFLOPS; the network: {work / 1e9:.1f} GFLOP | | | | |", flush=True)


def operations(network: nn.Module, images: Tensor) -> float:
    """The number of multiplications and additions in one forward pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images)
    return float(counter.get_total_flops())


def medians(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each call. The calls take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(WARM_UPS + rounds):
        for name, call in calls.items():
            seconds = timed(call)
            if turn >= WARM_UPS:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
