"""A trained network at work: load once, then predict image after image on each image's own grid."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (everybody's name for it)
from numpy.typing import NDArray
from torch import Tensor, nn

from ml_core.architectures import ARCHITECTURES, build
from ml_core.io import Image
from ml_core.package import Package, read_package
from ml_core.planning import Machine, Plan
from ml_core.preprocessing import preprocess, slices_to_labels

WINDOW = 768  # pixels: images up to this size go through in one piece, larger ones in windows of it
OVERLAP = 0.25
PIXELS_AT_ONCE = 8 * 256**2


@dataclass
class Segmentation:
    """values: the label map in the dataset's own values, canonical like the image's array: (H, W) or (D, H, W).

    indices: the same as positions in the plan's classes, uint8. seconds: time of the prediction alone.
    """

    values: NDArray[Any]
    indices: NDArray[np.uint8]
    seconds: float
    warnings: list[str] = field(default_factory=list)


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def forward_slices(network: nn.Module, images: Tensor, plan: Plan) -> Tensor:
    """Normalised slices (N, C, H, W) of any size → logits float32 (N, K, H, W), in a sliding window where they are large."""
    device = next(network.parameters()).device
    network.eval()
    height, width = images.shape[-2:]
    least = ARCHITECTURES[plan.architecture].minimum_size
    target = [max(least, -(-length // 32) * 32) for length in (height, width)]
    if max(target) > WINDOW:
        from monai.inferers.utils import sliding_window_inference  # heavy, and only large images need it

        window = [min(WINDOW, length) for length in target]

        def run(patch: Tensor) -> Tensor:
            return _forward(network, patch, device, plan.precision)

        padded = _pad(images, [max(0, w - n) for w, n in zip(window, (height, width), strict=True)])
        logits = sliding_window_inference(
            padded,
            window,
            1,
            run,
            overlap=OVERLAP,
            mode="gaussian",
            sw_device=device,
            device=torch.device("cpu"),
        )
        assert isinstance(logits, Tensor)
        return logits[..., :height, :width]
    padded = _pad(images, [target[0] - height, target[1] - width])
    return _forward(network, padded, device, plan.precision)[..., :height, :width]


def _forward(network: nn.Module, images: Tensor, device: torch.device, precision: str) -> Tensor:
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    with autocast(device, precision):
        logits: Tensor = network(images)
    return logits.float()


def _pad(images: Tensor, missing: list[int]) -> Tensor:
    """Pad the ends of the last two axes by mirroring, or by the border value where the image is too small to mirror."""
    if not any(missing):
        return images
    small = any(gap >= length for gap, length in zip(missing, images.shape[-2:], strict=True))
    return F.pad(images, (0, missing[1], 0, missing[0]), mode="replicate" if small else "reflect")


class Predictor:
    """One network, warm in memory."""

    def __init__(self, network: nn.Module, plan: Plan) -> None:
        self.plan = plan
        self.network = network.to(pick_device(), memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    @classmethod
    def load(cls, path: Path) -> Predictor:
        """From a model package. Raises ConfigError when it is damaged."""
        return cls.from_package(read_package(path))

    @classmethod
    def from_package(cls, package: Package) -> Predictor:
        plan = package.plan
        network, _ = build(
            plan.architecture,
            encoder=plan.encoder,
            channels=plan.preprocessing.channels,
            classes=len(plan.class_values),
        )
        network.load_state_dict(package.weights)
        # The precision is the machine's choice: a model trained in bf16 may be used where only fp32 is fast.
        return cls(
            network,
            Plan.from_dict({**plan.to_dict(), "precision": "bf16" if Machine.here().bf16 else "fp32"}),
        )

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.network.state_dict().values())

    def predict(self, image: Image) -> Segmentation:
        """Segment a picture or a volume (slice by slice along the plan's plane)."""
        start = time.perf_counter()
        axis = self.plan.preprocessing.slice_axis
        slices = preprocess(image, self.plan.preprocessing)
        count, _, height, width = slices.shape
        labels = np.empty((count, height, width), np.uint8)
        at_once = max(1, PIXELS_AT_ONCE // (height * width))
        for first in range(0, count, at_once):
            logits = forward_slices(self.network, torch.from_numpy(slices[first : first + at_once]), self.plan)
            labels[first : first + at_once] = logits.argmax(1).to(torch.uint8).cpu().numpy()
        indices = np.ascontiguousarray(slices_to_labels(labels, image, axis))
        values = np.asarray(self.plan.class_values)[indices]
        return Segmentation(values, indices, time.perf_counter() - start, input_warnings(image, self.plan))


def input_warnings(image: Image, plan: Plan) -> list[str]:
    """How the image differs from what the model was trained on: sentences, worst first; empty where it does not."""
    seen, found = plan.fingerprint, []
    if image.modality and seen["modality"] and image.modality != seen["modality"]:
        found.append(f"The image is {image.modality}; the model was trained on {seen['modality']}.")
    if image.dimensions != plan.dimensions:
        kinds = {2: "a picture", 3: "a volume"}
        found.append(
            f"The image is {kinds[image.dimensions]}; the model was trained on {kinds[plan.dimensions]}s.".replace(
                "a volumes", "volumes"
            ).replace("a pictures", "pictures")
        )
    if image.channels != plan.preprocessing.channels:
        kinds = {1: "greyscale", 3: "colour"}
        found.append(
            f"The image is {kinds[image.channels]}; the model was trained on {kinds[plan.preprocessing.channels]} images."
        )
    if image.spacing and seen["spacing"] and image.dimensions == plan.dimensions:
        usual = seen["spacing"]["median"]
        if any(
            max(own / other, other / own) > 2 for own, other in zip(image.spacing, usual, strict=True) if own and other
        ):
            own_text, usual_text = (" x ".join(f"{step:.3g}" for step in steps) for steps in (image.spacing, usual))
            found.append(f"The image's spacing is {own_text} mm; the model was trained on {usual_text} mm.")
    low, high = np.percentile(image.array.reshape(-1)[:: max(1, image.array.size // 100_000)], [0.5, 99.5])
    span = max(seen["intensity"]["maximum"] - seen["intensity"]["minimum"], 1e-6)
    if low < seen["intensity"]["minimum"] - span or high > seen["intensity"]["maximum"] + span:
        usual_text = f"{seen['intensity']['minimum']:.4g} to {seen['intensity']['maximum']:.4g}"
        found.append(f"The image's values run from {low:.4g} to {high:.4g}; the model was trained on {usual_text}.")
    return found
