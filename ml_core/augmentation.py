"""Random changes of a whole batch, image and labels together; all geometry in one resampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (everybody's name for it)
from torch import Tensor


@dataclass(frozen=True)
class Preset:
    """Shares are probabilities per image. rotation in degrees, scale as ± share, elastic in pixels, the rest in standard deviations."""

    flip: bool = True
    warp_share: float = 0.0
    rotation: float = 0.0
    scale: float = 0.0
    elastic: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0


PRESETS = {
    "none": Preset(flip=False),
    "light": Preset(brightness=0.1, contrast=0.1),
    "standard": Preset(
        warp_share=0.6,
        rotation=180,
        scale=0.2,
        elastic=6,
        brightness=0.2,
        contrast=0.25,
        gamma=0.2,
        noise=0.1,
    ),
    "strong": Preset(
        warp_share=0.8,
        rotation=180,
        scale=0.35,
        elastic=10,
        brightness=0.4,
        contrast=0.4,
        gamma=0.35,
        noise=0.2,
    ),
}


def augment(images: Tensor, labels: Tensor, preset: Preset, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """images float (B, C, H, W), normalised; labels int64 (B, H, W) → the same shapes, changed. `generator` lives on the CPU."""
    if preset.flip:
        images, labels = _flip(images, labels, generator)
    if preset.warp_share:
        images, labels = _warp(images, labels, preset, generator)
    return _recolour(images, preset, generator), labels


def _flip(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flips and quarter turns: exact, and one of eight for each image."""
    choice = torch.randint(8, (len(images),), generator=generator).tolist()
    square = images.shape[-1] == images.shape[-2]
    turned_images, turned_labels = torch.empty_like(images), torch.empty_like(labels)
    for index, code in enumerate(choice):
        turns = code % 4 if square else 2 * (code % 2)
        image, label = (
            torch.rot90(images[index], turns, (-2, -1)),
            torch.rot90(labels[index], turns, (-2, -1)),
        )
        turned_images[index] = image.flip(-1) if code >= 4 else image
        turned_labels[index] = label.flip(-1) if code >= 4 else label
    return turned_images, turned_labels


def _warp(images: Tensor, labels: Tensor, preset: Preset, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rotation, scale and elastic deformation of a random part of the batch."""
    chosen = torch.nonzero(torch.rand(len(images), generator=generator) < preset.warp_share).flatten()
    if not len(chosen):
        return images, labels
    count, (height, width) = len(chosen), images.shape[-2:]
    angle = (torch.rand(count, generator=generator) * 2 - 1) * math.radians(preset.rotation)
    zoom = 1 + (torch.rand(count, generator=generator) * 2 - 1) * preset.scale
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    # affine_grid works in [-1, 1] on both axes; the ratio keeps a turn a turn where the image is not square.
    ratio = height / width
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = cos, -sin * ratio
    theta[:, 1, 0], theta[:, 1, 1] = sin / ratio, cos
    grid = F.affine_grid(theta, [count, 1, height, width], align_corners=False)
    if preset.elastic:
        coarse = torch.randn(count, 2, 6, 6, generator=generator)
        smooth = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
        grid = grid + smooth.permute(0, 2, 3, 1) * torch.tensor([2 / width, 2 / height]) * preset.elastic
    grid = grid.to(images.device)
    chosen = chosen.to(images.device)
    images, labels = images.clone(), labels.clone()
    picked = labels[chosen].unsqueeze(1).to(images.dtype)
    images[chosen] = F.grid_sample(
        images[chosen], grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    moved = F.grid_sample(picked, grid, mode="nearest", padding_mode="reflection", align_corners=False)
    labels[chosen] = moved.squeeze(1).round().long()
    return images, labels


def _recolour(images: Tensor, preset: Preset, generator: torch.Generator) -> Tensor:
    """Contrast, brightness, gamma and noise, each of its own size for each image."""
    count = len(images)

    def draw(spread: float) -> Tensor:
        return (torch.randn(count, 1, 1, 1, generator=generator) * spread).to(images.device, images.dtype)

    if preset.contrast or preset.brightness:
        images = images * torch.exp(draw(preset.contrast)) + draw(preset.brightness)
    if preset.gamma:
        low = images.amin((1, 2, 3), keepdim=True)
        span = (images.amax((1, 2, 3), keepdim=True) - low).clamp_min(1e-6)
        images = ((images - low) / span).clamp_min(1e-6).pow(torch.exp(draw(preset.gamma))) * span + low
    if preset.noise:
        noise = torch.randn(images.shape, generator=generator).to(images.device, images.dtype)
        images = images + noise * draw(preset.noise).abs()
    return images
