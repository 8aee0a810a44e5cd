"""Trains as MONAI's tutorials do: 2d_segmentation/torch/unet_training_dict and 3d_segmentation/spleen_segmentation_3d.

These things differ from the tutorials:
- All training files are learned from. There is no validation, and the last weights are used.
- In 2D too there is a softmax over the task's classes, where the tutorial has a single sigmoid.
- Files are decoded once (with the 3D tutorial's CacheDataset). The clock includes this.
- CT is scaled with the spleen tutorial's window, -57 to 164 HU. Other volumes are scaled by the mean and standard
  deviation of the voxels that are not air, as in MONAI's BraTS tutorial. Air is the value of the corner, which is moved
  to zero.
- Volumes keep their own spacing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.dataloader import DataLoader
from monai.data.dataset import CacheDataset
from monai.data.utils import list_data_collate
from monai.inferers.utils import sliding_window_inference
from monai.losses.dice import DiceLoss
from monai.networks.layers.factories import Norm
from monai.networks.nets.unet import UNet
from monai.transforms.compose import Compose
from monai.transforms.croppad.dictionary import CropForegroundd, RandCropByPosNegLabeld, SpatialPadd
from monai.transforms.intensity.array import NormalizeIntensity, ScaleIntensity, ScaleIntensityRange
from monai.transforms.spatial.dictionary import RandRotate90d
from monai.utils.misc import set_determinism

from benchmarks.peers import common
from benchmarks.peers.clock import Clock
from ml_core.io import read_image

IMAGES, SAMPLES, SIDE = 2, 4, 96
# Dimensions → the side of the sliding window.
WINDOW = {2: 96, 3: 160}
KEYS = ("image", "label")


def main() -> None:
    given = common.parser().parse_args()
    task = common.Task.read(given.task)
    set_determinism(seed=0)
    volume = task.dimensions == 3
    scale = scaling(task)
    network = UNet(
        spatial_dims=task.dimensions,
        in_channels=task.channels,
        out_channels=len(task.values),
        channels=(16, 32, 64, 128, 256),
        strides=(2, 2, 2, 2),
        num_res_units=2,
        norm=Norm.BATCH if volume else Norm.INSTANCE,
    )
    loss_function = DiceLoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4 if volume else 1e-3)

    clock, units = Clock(given.budget), 0
    files = []
    for pair in task.train:
        image, mask = common.load(pair, task.values)
        files.append({"image": scale(image.array.astype(np.float32)), "label": mask[None]})
    data = CacheDataset(files, transforms(task.dimensions), progress=False)
    stream = forever(DataLoader(data, batch_size=IMAGES, shuffle=True, collate_fn=list_data_collate))
    while clock.go_on():
        batch = next(stream)
        optimizer.zero_grad()
        loss = loss_function(network(batch["image"]), batch["label"])
        loss.backward()
        optimizer.step()
        units += len(batch["image"])

    started = time.monotonic()
    network.eval()
    window = (WINDOW[task.dimensions],) * task.dimensions
    for path, _ in task.unseen:
        pixels = torch.as_tensor(scale(read_image(Path(path)).array.astype(np.float32)))
        with torch.no_grad():
            logits = sliding_window_inference(pixels[None], window, 4, network)
        common.write_prediction(torch.as_tensor(logits)[0].argmax(0).numpy(), path, task.values, given.out)
    predicted = time.monotonic() - started
    clock.report(given.out, unit=f"crops of {SIDE}{'³' if volume else '²'}", units=units, predict_seconds=predicted)


def scaling(task: common.Task) -> Any:
    """A function that scales the values of an image (C, ...), as the tutorial for its kind does."""
    if task.modality == "CT":
        return ScaleIntensityRange(a_min=-57, a_max=164, b_min=0.0, b_max=1.0, clip=True)
    if task.dimensions == 2:
        return ScaleIntensity()
    return Compose([lambda pixels: pixels - pixels.reshape(-1)[0], NormalizeIntensity(nonzero=True, channel_wise=True)])


def transforms(dimensions: int) -> Compose:
    """Cut four crops of an image, half of them around foreground. In 2D some are also turned by 90 degrees."""
    size = (SIDE,) * dimensions
    crop = RandCropByPosNegLabeld(KEYS, label_key="label", spatial_size=size, pos=1, neg=1, num_samples=SAMPLES)
    if dimensions == 3:
        return Compose([CropForegroundd(KEYS, source_key="image", select_fn=body), SpatialPadd(KEYS, size), crop])
    return Compose([SpatialPadd(KEYS, size), crop, RandRotate90d(KEYS, prob=0.5, spatial_axes=(0, 1))])


def body(pixels: Any) -> Any:
    """Mark the voxels that are not air. Air is the value of the volume's corner."""
    return pixels != pixels.reshape(-1)[0]


def forever(loader: DataLoader) -> Iterator[Any]:
    """Yield batches, epoch after epoch."""
    while True:
        yield from loader


if __name__ == "__main__":
    main()
