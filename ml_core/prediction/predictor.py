"""A trained network at work: load once, then predict image after image on each image's own grid."""

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

WINDOW = 768  # pixels: pictures up to this size go through in one piece, larger ones in windows of it
OVERLAP_2D, OVERLAP_3D = 0.25, 0.5
PIXELS_AT_ONCE = 8 * 256**2
VOXELS_AT_ONCE = 96**3
UNLIKE = 8.0  # an image whose values spread so many times wider or narrower than usual is of another kind


@dataclass
class Segmentation:
    """values: the label map in the dataset's own values, canonical like the image's array: (H, W) or (D, H, W).

    indices: the same as positions in the plan's classes, uint8. certainty: float16 of the same shape, 1 where the network is
    sure (1 - entropy of the probabilities / log K). confidence: its mean over the predicted foreground, or over the whole image
    where none is predicted. seconds: time of the prediction alone.
    """

    values: NDArray[Any]
    indices: NDArray[np.uint8]
    certainty: NDArray[np.float16]
    confidence: float
    seconds: float
    warnings: list[str] = field(default_factory=list)


class Predictor:
    """One model, warm in memory: the networks (more than one for an ensemble) that answer together, and how.

    on_probabilities of `predict` gets (first slice, float32 (n, K, H, W)) piece by piece, laid like `labels_to_slices`.
    """

    def __init__(
        self, forwards: list[Forward], plan: Plan, refinements: Refinements | None = None, nbytes: int = 0
    ) -> None:
        self.forwards, self.plan, self.nbytes = forwards, plan, nbytes
        self.refinements = refinements or Refinements()

    @classmethod
    def load(cls, path: Path) -> Predictor:
        """From a model package. Raises ConfigError when it is damaged."""
        return cls.from_package(read_package(path))

    @classmethod
    def from_package(cls, package: Package) -> Predictor:
        """The converted networks where the package says that they agree and this machine runs on its CPU, else PyTorch's."""
        plan, machine = package.plan, Machine.here()
        # The precision is the machine's choice too: a model trained in bf16 may be used where only fp32 is fast.
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
        """Segment a picture or a volume."""
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
            if image.dimensions == 2:  # not as a volume of one slice, in which nothing is enclosed
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
        """Preprocessed (N, C, H, W) or (1, C, D, H, W) → pieces (first slice, float32 (n, K, H, W)) on the image's own grid."""
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
                found = torch.stack([self._windows(item, window, OVERLAP_2D, 1).float() for item in batch])
            else:
                found = self._run(batch)
            if tuple(found.shape[2:]) != own[1:]:
                found = F.interpolate(found, own[1:], mode="bilinear", align_corners=False)
            yield first, found

    def _windows(self, image: Tensor, window: tuple[int, ...], overlap: float, pixels_at_once: int) -> Tensor:
        """(C, *spatial) → probabilities float16 (K, *spatial), window by window."""
        spatial = image.shape[1:]
        padded = _pad(image[None], [max(0, size - n) for size, n in zip(window, spatial, strict=True)])[0]
        at_once = max(1, pixels_at_once // math.prod(window))
        found = blend(self._run, padded, window, overlap=overlap, at_once=at_once)
        return found[(slice(None), *(slice(0, length) for length in spatial))]

    def _run(self, images: Tensor) -> Tensor:
        """(N, C, *spatial) of any size → probabilities float32, averaged over the networks and the mirrored copies."""
        spatial = images.shape[2:]
        wanted = self.plan.padded_shape(spatial)
        padded = _pad(images, [target - length for target, length in zip(wanted, spatial, strict=True)])
        total: Tensor | None = None
        turned = list(_mirrored(self.refinements.mirroring, len(spatial)))
        for there, back in turned:
            batch = there(padded).contiguous().numpy()
            for forward in self.forwards:
                found = back(torch.from_numpy(forward(batch)).softmax(1))
                total = found if total is None else total.add_(found)
        assert total is not None
        count = len(turned) * len(self.forwards)
        total = total if count == 1 else total / count
        return total[(slice(None), slice(None), *(slice(0, length) for length in spatial))]


def network_of(plan: Plan, weights: dict[str, Tensor] | None = None) -> torch.nn.Module:
    """The plan's network in evaluation mode, with these weights where given."""
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
    """(there, back) of each copy: the image itself, its flips along all axes, and for pictures also with rows and columns swapped."""

    def keep(item: Tensor) -> Tensor:
        return item

    axes = range(2, 2 + dimensions) if which != "none" else range(0)
    for flipped in itertools.chain.from_iterable(itertools.combinations(axes, n) for n in range(len(axes) + 1)):

        def flip(item: Tensor, flipped: tuple[int, ...] = flipped) -> Tensor:
            return item.flip(flipped)

        yield (flip, flip) if flipped else (keep, keep)
        if which == "flips and turns":
            yield (
                lambda item, flip=flip: flip(item).transpose(-1, -2),  # type: ignore[misc]  # a lambda's default has no type
                lambda item, flip=flip: flip(item.transpose(-1, -2)),  # type: ignore[misc]  # a lambda's default has no type
            )


def _certainty(probabilities: Tensor) -> Tensor:
    """(n, K, H, W) → (n, H, W)."""
    entropy = -torch.special.xlogy(probabilities, probabilities).sum(1)
    certainty: Tensor = (1 - entropy / math.log(max(2, probabilities.shape[1]))).clamp_(0, 1)
    return certainty


def _resized_volume(volume: Tensor, own: tuple[int, ...]) -> Iterator[tuple[int, Tensor]]:
    """float16 (K, d, h, w) → pieces (first slice, float32 (n, K, H, W)) of the grid `own` (D, H, W), linear between voxels."""
    depth = volume.shape[1]
    at_once = max(1, 2 * PIXELS_AT_ONCE // math.prod(own[1:]))
    for first in range(0, own[0], at_once):
        wanted = torch.arange(first, min(first + at_once, own[0]), dtype=torch.float32)
        place = ((wanted + 0.5) * depth / own[0] - 0.5).clamp(0, depth - 1)
        low = place.floor().long()
        share = (place - low)[:, None, None, None]
        slices = volume[:, low].float().movedim(0, 1)
        if bool(share.any()):
            slices = torch.lerp(slices, volume[:, (low + 1).clamp_max(depth - 1)].float().movedim(0, 1), share)
        if tuple(slices.shape[2:]) != own[1:]:
            slices = F.interpolate(slices, own[1:], mode="bilinear", align_corners=False)
        yield first, slices


def _pad(images: Tensor, missing: list[int]) -> Tensor:
    """Pad the ends of the last axes by mirroring, or by the border value where the image is too small to mirror."""
    if not any(missing):
        return images
    small = any(gap >= length for gap, length in zip(missing, images.shape[2:], strict=True))
    ends = [item for gap in reversed(missing) for item in (0, gap)]
    return F.pad(images, ends, mode="replicate" if small else "reflect")


def input_warnings(image: Image, plan: Plan) -> list[str]:
    """How the image differs from what the model was trained on: sentences, worst first; empty where it does not."""
    seen, found = plan.fingerprint, []
    if image.modality and seen.modality and image.modality != seen.modality:
        found.append(f"The image is {image.modality}; the model was trained on {seen.modality}.")
    if image.dimensions != plan.dimensions:
        kind = {2: "picture", 3: "volume"}
        found.append(f"The image is a {kind[image.dimensions]}; the model was trained on {kind[plan.dimensions]}s.")
    if image.channels != plan.preprocessing.channels:
        kinds = {1: "greyscale", 3: "colour"}
        found.append(
            f"The image is {kinds[image.channels]}; the model was trained on {kinds[plan.preprocessing.channels]} images."
        )
    if image.spacing and seen.spacing and image.dimensions == plan.dimensions:
        usual = seen.spacing.median
        if any(
            max(own / other, other / own) > 2 for own, other in zip(image.spacing, usual, strict=True) if own and other
        ):
            own_text, usual_text = (" x ".join(f"{step:.3g}" for step in steps) for steps in (image.spacing, usual))
            found.append(f"The image's spacing is {own_text} mm; the model was trained on {usual_text} mm.")
    low, high = np.percentile(image.array.reshape(-1)[:: max(1, image.array.size // 100_000)], [0.5, 99.5])
    known = seen.intensity
    span, typical = max(known.maximum - known.minimum, 1e-6), known.high - known.low
    beyond = low < known.minimum - span or high > known.maximum + span
    if beyond or (typical > 0 and not typical / UNLIKE <= high - low <= typical * UNLIKE):
        usual_text = f"{known.minimum:.4g} to {known.maximum:.4g}"
        found.append(f"The image's values run from {low:.4g} to {high:.4g}; the model was trained on {usual_text}.")
    elif seen.modality == "CT" and not image.modality and guess_modality(image) != "CT":
        text = f"The image's values run from {low:.4g} to {high:.4g} and do not look like CT in Hounsfield units, where air is near -1000"
        found.append(f"{text}; the model was trained on those.")
    return found
