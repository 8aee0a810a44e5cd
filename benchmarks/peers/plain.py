"""The peer "plain": the simplest training loop that a student would write.

It trains a U-Net with a ResNet-34 encoder from random weights, with AdamW at 1e-3, on random crops, without a schedule
and without other augmentation, and uses the last weights. Each image is scaled by its own mean and standard deviation,
and volumes are cut into axial slices. The clock includes reading the files. All images are kept in memory, which makes
the loop faster than with a DataLoader that decodes them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from benchmarks.peers import common
from benchmarks.peers.clock import Clock
from ml_core.io import Image, read_image

BATCH, CROP = 8, 256


def scaled(image: Image) -> torch.Tensor:
    """Scale an image to mean 0 and standard deviation 1: float32 (N, C, H, W), with a volume's slices along N."""
    array = torch.from_numpy(image.array.astype(np.float32))
    array = (array - array.mean()) / array.std().clamp(min=1e-6)
    return array[None] if image.dimensions == 2 else array.movedim(1, 0)


def main() -> None:
    parser = common.parser()
    parser.add_argument("--bf16", action="store_true", help="channels_last and bf16 autocast")
    given = parser.parse_args()
    task = common.Task.read(given.task)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    layout = torch.channels_last if given.bf16 else torch.contiguous_format

    clock = Clock(given.budget)
    slices: list[tuple[torch.Tensor, torch.Tensor]] = []
    for pair in task.train:
        image, mask = common.load(pair, task.values)
        labels = torch.from_numpy(mask)
        slices += zip(scaled(image), labels[None] if image.dimensions == 2 else labels, strict=True)
    smallest = min(min(labels.shape) for _, labels in slices)
    side = min(CROP, smallest // 32 * 32)
    network = smp.Unet("resnet34", encoder_weights=None, in_channels=task.channels, classes=len(task.values))
    network = network.to(memory_format=layout)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    cross_entropy, dice = nn.CrossEntropyLoss(), smp.losses.DiceLoss("multiclass")
    while clock.go_on():
        crops, targets = [], []
        for index in rng.integers(len(slices), size=BATCH):
            pixels, labels = slices[index]
            top, left = (int(rng.integers(length - side + 1)) for length in labels.shape)
            crops.append(pixels[:, top : top + side, left : left + side])
            targets.append(labels[top : top + side, left : left + side])
        batch, target = torch.stack(crops).contiguous(memory_format=layout), torch.stack(targets).long()
        with torch.autocast("cpu", torch.bfloat16, enabled=given.bf16):
            logits = network(batch)
        loss = cross_entropy(logits.float(), target) + dice(logits.float(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    started = time.monotonic()
    network.eval()
    for path, _ in task.unseen:
        image = read_image(Path(path))
        label_maps = [_segment(network, part[None], layout, given.bf16) for part in scaled(image)]
        common.write_prediction(np.stack(label_maps).reshape(image.shape), path, task.values, given.out)
    predicted = time.monotonic() - started
    clock.report(given.out, unit=f"crops of {side}²", units=clock.steps * BATCH, predict_seconds=predicted)


@torch.inference_mode()
def _segment(network: nn.Module, batch: torch.Tensor, layout: torch.memory_format, bf16: bool) -> NDArray[Any]:
    """Predict a whole slice (1, C, H, W), padded to a multiple of 32: class positions uint8 (H, W)."""
    height, width = batch.shape[-2:]
    padded = functional.pad(batch, (0, -width % 32, 0, -height % 32), mode="reflect").contiguous(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = network(padded)
    indices: NDArray[Any] = logits[0, :, :height, :width].float().argmax(0).to(torch.uint8).numpy()
    return indices


if __name__ == "__main__":
    main()
