"""Predicts images with a trained model, which is loaded once. Each label map is on its image's own grid."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (everybody's name for it)
from numpy.typing import NDArray
from torch import Tensor

from ml_core.cases.patches import with_neighbours
from ml_core.cases.preprocessing import labels_to_slices, preprocess, slices_to_labels
from ml_core.dataset.fingerprint import guess_modality
from ml_core.io import Image
from ml_core.networks.catalogue import build
from ml_core.networks.device import most_probable
from ml_core.planning.plan import Machine, Plan
from ml_core.prediction.decisions import Refinements
from ml_core.prediction.package import Package, read_package
from ml_core.prediction.postprocessing import apply
from ml_core.prediction.runtimes import Forward, OpenVinoForward, TorchForward
from ml_core.prediction.windows import blend

# Pixels per axis. A larger picture is predicted in overlapping windows of this size, a smaller one in one piece.
WINDOW = 768
OVERLAP_2D, OVERLAP_3D = 0.25, 0.5
PIXELS_AT_ONCE = 8 * 256**2
VOXELS_AT_ONCE = 96**3
# An image whose range of values is this many times wider or narrower than usual is taken for another kind of image.
UNLIKE = 8.0


@dataclass
class Segmentation:
    """The prediction of one image. Its arrays have the shape of the image: (H, W) or (D, H, W), canonical axes."""

    values: NDArray[Any]
    """The label map, in the dataset's own label values."""
    indices: NDArray[np.uint8]
    """The label map, as positions in the plan's classes."""
    certainty: NDArray[np.float16]
    """1 - entropy of the probabilities / log K: 1 where the model is sure, 0 where all classes are equally probable."""
    confidence: float
    """The mean certainty over the predicted foreground, or over the whole image if no foreground is predicted."""
    seconds: float
    """The time of the prediction, without reading the file."""
    warnings: list[str] = field(default_factory=list)
    """Sentences about how the image was read, and how it differs from those of the training."""


class Predictor:
    """A model that is loaded and ready: its networks (several for an ensemble, which are averaged) and its refinements.

    `nbytes` is the memory that its weights take.
    """

    def __init__(
        self, forwards: list[Forward], plan: Plan, refinements: Refinements | None = None, nbytes: int = 0
    ) -> None:
        self.forwards, self.plan, self.nbytes = forwards, plan, nbytes
        self.refinements = refinements or Refinements()

    @classmethod
    def load(cls, path: Path) -> Predictor:
        """Load a model package. Raises ConfigError if it is damaged."""
        return cls.from_package(read_package(path))

    @classmethod
    def from_package(cls, package: Package) -> Predictor:
        """Use the OpenVINO networks if the package has them and this machine has no GPU, otherwise PyTorch."""
        plan, machine = package.plan, Machine.here()
        # A model trained in bf16 may run on a machine that computes quickly only in fp32.
        chosen = package.decisions.serving.precision if package.decisions.serving else plan.precision
        precision = chosen if machine.bf16 else "fp32"
        forwards: list[Forward]
        if package.converted and not machine.cuda:
            forwards = [OpenVinoForward(xml, weights, precision) for xml, weights in package.converted]
        else:
            forwards = [TorchForward(network_of(plan, weights), precision) for weights in package.members]
        nbytes = sum(tensor.nbytes for member in package.members for tensor in member.values())
        nbytes += sum(len(weights) for _, weights in package.converted)
        return cls(forwards, plan, package.decisions.refinements(), nbytes)

    def predict(
        self, image: Image, on_probabilities: Callable[[int, NDArray[np.float32]], None] | None = None
    ) -> Segmentation:
        """Segment a picture or a volume.

        `on_probabilities` is called with (first slice, float32 (n, K, H, W)) for each piece of the image, with the axes
        in the order of `labels_to_slices`: the probabilities of a whole volume may not fit into memory.
        """
        start = time.perf_counter()
        plan, axis = self.plan, self.plan.preprocessing.slice_axis
        own = labels_to_slices(np.empty(image.shape, np.uint8), image, axis).shape
        labels, certainty = np.empty(own, np.uint8), np.empty(own, np.float16)
        for first, probabilities in self._probabilities(preprocess(image, plan.preprocessing), own):
            cut = slice(first, first + len(probabilities))
            labels[cut] = most_probable(probabilities).to(torch.uint8).numpy()
            certainty[cut] = _certainty(probabilities).to(torch.float16).numpy()
            if on_probabilities:
                on_probabilities(first, probabilities.numpy())
        if self.refinements.postprocessing:
            # A picture is not cleaned as a volume of one slice, in which no hole would be enclosed.
            if image.dimensions == 2:
                labels = apply(labels[0], self.refinements.postprocessing)[None]
            else:
                labels = apply(labels, self.refinements.postprocessing)
        foreground = labels > 0
        confidence = float(certainty[foreground if foreground.any() else ...].mean(dtype=np.float64))
        indices, certainty = (np.ascontiguousarray(slices_to_labels(item, image, axis)) for item in (labels, certainty))
        values = np.asarray(plan.class_values)[indices]
        seconds = time.perf_counter() - start
        return Segmentation(values, indices, certainty, confidence, seconds, input_warnings(image, plan))

    def _probabilities(self, images: NDArray[np.float32], own: tuple[int, ...]) -> Iterator[tuple[int, Tensor]]:
        """Predict preprocessed images float32 (N, C, H, W) or (1, C, D, H, W), piece by piece.

        Yields (first slice, probabilities float32 (n, K, H, W)) on the grid `own` of the image.
        """
        if self.plan.configuration == "3d":
            volume = self._windows(torch.from_numpy(images[0]), self.plan.patch, OVERLAP_3D, VOXELS_AT_ONCE)
            yield from _resized_volume(volume, own)
            return
        height, width = images.shape[-2:]
        at_once = max(1, PIXELS_AT_ONCE // (height * width))
        for first in range(0, len(images), at_once):
            chosen = range(first, min(first + at_once, len(images)))
            batch = torch.from_numpy(np.stack([with_neighbours(images, index, self.plan.context) for index in chosen]))
            if max(height, width) > WINDOW:
                window = tuple(min(WINDOW, length) for length in self.plan.padded_shape((height, width)))
                probabilities = torch.stack([self._windows(item, window, OVERLAP_2D, 1).float() for item in batch])
            else:
                probabilities = self._run(batch)
            if tuple(probabilities.shape[2:]) != own[1:]:
                probabilities = F.interpolate(probabilities, own[1:], mode="bilinear", align_corners=False)
            yield first, probabilities

    def _windows(self, image: Tensor, window: tuple[int, ...], overlap: float, pixels_at_once: int) -> Tensor:
        """Predict (C, *spatial) in overlapping windows: probabilities float16 (K, *spatial)."""
        spatial = image.shape[1:]
        padded = _pad(image[None], [max(0, size - n) for size, n in zip(window, spatial, strict=True)])[0]
        at_once = max(1, pixels_at_once // math.prod(window))
        blended = blend(self._run, padded, window, overlap=overlap, at_once=at_once)
        return blended[(slice(None), *(slice(0, length) for length in spatial))]

    def _run(self, images: Tensor) -> Tensor:
        """Predict (N, C, *spatial) of any size: probabilities float32 (N, K, *spatial).

        They are averaged over the networks and over the mirrored copies.
        """
        spatial = images.shape[2:]
        target_shape = self.plan.padded_shape(spatial)
        padded = _pad(images, [target - length for target, length in zip(target_shape, spatial, strict=True)])
        total: Tensor | None = None
        copies = list(_mirrored(self.refinements.mirroring, len(spatial)))
        for mirror, restore in copies:
            batch = mirror(padded).contiguous().numpy()
            for forward in self.forwards:
                probabilities = restore(torch.from_numpy(forward(batch)).softmax(1))
                total = probabilities if total is None else total.add_(probabilities)
        assert total is not None
        count = len(copies) * len(self.forwards)
        total = total if count == 1 else total / count
        return total[(slice(None), slice(None), *(slice(0, length) for length in spatial))]


def network_of(plan: Plan, weights: dict[str, Tensor] | None = None) -> torch.nn.Module:
    """Build the plan's network in evaluation mode, with random weights if `weights` (its state_dict) is not given."""
    network, _ = build(
        plan.architecture,
        encoder=plan.encoder,
        channels=plan.in_channels,
        classes=len(plan.class_values),
        arguments=plan.network,
    )
    if weights is not None:
        network.load_state_dict(weights)
    return network.eval()


def _mirrored(which: str, dimensions: int) -> Iterator[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]:
    """Yield (mirror, restore) for each copy of an image; (N, C, *spatial) in and out.

    The copies are the image itself, all combinations of flips unless `which` is "none", and each of them with rows and
    columns swapped if `which` is "flips and turns".
    """

    def keep(item: Tensor) -> Tensor:
        return item

    axes = range(2, 2 + dimensions) if which != "none" else range(0)
    for flipped in itertools.chain.from_iterable(itertools.combinations(axes, n) for n in range(len(axes) + 1)):

        def flip(item: Tensor, flipped: tuple[int, ...] = flipped) -> Tensor:
            return item.flip(flipped)

        yield (flip, flip) if flipped else (keep, keep)
        if which == "flips and turns":
            yield (
                # mypy cannot type the default of a lambda.
                lambda item, flip=flip: flip(item).transpose(-1, -2),  # type: ignore[misc]
                lambda item, flip=flip: flip(item.transpose(-1, -2)),  # type: ignore[misc]
            )


def _certainty(probabilities: Tensor) -> Tensor:
    """`Segmentation.certainty` of probabilities (n, K, H, W): (n, H, W)."""
    entropy = -torch.special.xlogy(probabilities, probabilities).sum(1)
    certainty: Tensor = (1 - entropy / math.log(max(2, probabilities.shape[1]))).clamp_(0, 1)
    return certainty


def _resized_volume(volume: Tensor, own: tuple[int, ...]) -> Iterator[tuple[int, Tensor]]:
    """Resample probabilities float16 (K, d, h, w) linearly to the grid `own` (D, H, W).

    Yields (first slice, float32 (n, K, H, W)): only a few slices of the larger grid are in memory at a time.
    """
    depth = volume.shape[1]
    at_once = max(1, 2 * PIXELS_AT_ONCE // math.prod(own[1:]))
    for first in range(0, own[0], at_once):
        targets = torch.arange(first, min(first + at_once, own[0]), dtype=torch.float32)
        place = ((targets + 0.5) * depth / own[0] - 0.5).clamp(0, depth - 1)
        low = place.floor().long()
        share = (place - low)[:, None, None, None]
        slices = volume[:, low].float().movedim(0, 1)
        if bool(share.any()):
            slices = torch.lerp(slices, volume[:, (low + 1).clamp_max(depth - 1)].float().movedim(0, 1), share)
        if tuple(slices.shape[2:]) != own[1:]:
            slices = F.interpolate(slices, own[1:], mode="bilinear", align_corners=False)
        yield first, slices


def _pad(images: Tensor, missing: list[int]) -> Tensor:
    """Pad the ends of the last axes by mirroring, or with the border's values if the image is too small to mirror."""
    if not any(missing):
        return images
    small = any(gap >= length for gap, length in zip(missing, images.shape[2:], strict=True))
    ends = [item for gap in reversed(missing) for item in (0, gap)]
    return F.pad(images, ends, mode="replicate" if small else "reflect")


def input_warnings(image: Image, plan: Plan) -> list[str]:
    """Sentences about how the image was read, and how it differs from the training images; empty if all is as usual."""
    seen, warnings = plan.fingerprint, [notice.text for notice in image.notices]
    if image.modality and seen.modality and image.modality != seen.modality:
        warnings.append(f"The image is {image.modality}; the model was trained on {seen.modality}.")
    if image.dimensions != plan.dimensions:
        kind = {2: "picture", 3: "volume"}
        warnings.append(f"The image is a {kind[image.dimensions]}; the model was trained on {kind[plan.dimensions]}s.")
    if image.channels != plan.preprocessing.channels:
        # Images with other channels are refused (ml_core.cases.preprocessing).
        kinds = {1: "greyscale", 3: "colour"}
        usual_kind = kinds[plan.preprocessing.channels]
        warnings.append(f"The image is {kinds[image.channels]}; the model was trained on {usual_kind} images.")
    if image.spacing and seen.spacing and image.dimensions == plan.dimensions:
        usual = seen.spacing.median
        if any(
            max(own / other, other / own) > 2 for own, other in zip(image.spacing, usual, strict=True) if own and other
        ):
            own_text, usual_text = (" x ".join(f"{step:.3g}" for step in steps) for steps in (image.spacing, usual))
            warnings.append(f"The image's spacing is {own_text} mm; the model was trained on {usual_text} mm.")
    low, high = np.percentile(image.array.reshape(-1)[:: max(1, image.array.size // 100_000)], [0.5, 99.5])
    known = seen.intensity
    span, typical = max(known.maximum - known.minimum, 1e-6), known.high - known.low
    beyond = low < known.minimum - span or high > known.maximum + span
    if beyond or (typical > 0 and not typical / UNLIKE <= high - low <= typical * UNLIKE):
        usual_text = f"{known.minimum:.4g} to {known.maximum:.4g}"
        warnings.append(f"The image's values run from {low:.4g} to {high:.4g}; the model was trained on {usual_text}.")
    elif seen.modality == "CT" and not image.modality and guess_modality(image) != "CT":
        warnings.append(
            f"The image's values run from {low:.4g} to {high:.4g} and do not look like CT in Hounsfield units, where "
            "air is near -1000; the model was trained on those."
        )
    return warnings
