"""Changes a batch of images at random, together with its labels, in 2D and 3D.

The kinds of changes and their strength follow nnU-Net (Isensee 2021). Costly kinds are rarer or left out, because a
batch must be ready in a few per cent of the time of a training step on two cores. For the same reason rotation, scale
and elastic deformation are done in a single resampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812 (everybody's name for it)
from torch import Tensor

# The largest rotation of a volume in degrees, because bodies lie in scanners in nearly the same way.
STEEPEST_3D = 30.0
# Points per axis at which the elastic deformation is drawn. Between them it is interpolated.
ELASTIC_KNOTS = 6
# Points per axis at which places are computed in 2D. Between them they are interpolated.
MESH = 33


@dataclass(frozen=True)
class Preset:
    """How strong each kind of change is; 0 turns it off. A share is the probability that an image is changed at all.

    Intensities are those of a normalised image, whose standard deviation is 1.
    """

    flip: bool = True
    """Whether images are mirrored and turned by quarters."""
    warp_share: float = 0.0
    """The share of images that are rotated, scaled and deformed."""
    rotation: float = 0.0
    """The largest angle, in degrees."""
    scale: float = 0.0
    """The largest change of size, as a fraction: 0.2 is 80 to 120 per cent."""
    elastic: float = 0.0
    """The standard deviation of the elastic displacement, in pixels."""
    brightness: float = 0.0
    """The standard deviation of what is added to an image."""
    contrast: float = 0.0
    """The standard deviation of the logarithm of the factor that an image is multiplied by."""
    tint: float = 0.0
    """As brightness and contrast, but drawn for each colour channel separately."""
    gamma: float = 0.0
    """The standard deviation of the logarithm of gamma."""
    gamma_share: float = 0.3
    noise: float = 0.0
    """How strong the noise is. The noise level of an image is the size of a normal number with this spread."""
    noise_share: float = 0.2
    soften: float = 1.0
    """The largest factor by which the pixels per axis are reduced and then restored; 1 turns it off."""
    soften_share: float = 0.2


PRESETS = {
    "none": Preset(flip=False),
    "intensity": Preset(flip=False, brightness=0.1, contrast=0.1),
    "light": Preset(brightness=0.1, contrast=0.1),
    "standard": Preset(
        warp_share=0.6,
        rotation=180,
        scale=0.2,
        elastic=6,
        brightness=0.2,
        contrast=0.25,
        tint=0.1,
        gamma=0.25,
        noise=0.15,
        soften=2.0,
    ),
    "strong": Preset(
        warp_share=0.8,
        rotation=180,
        scale=0.35,
        elastic=10,
        brightness=0.4,
        contrast=0.4,
        tint=0.2,
        gamma=0.35,
        noise=0.3,
        soften=3.0,
    ),
}


def for_modality(preset: Preset, modality: str) -> Preset:
    """Reduce the preset to what suits a modality.

    Values of CT are physical units, so they change less and without gamma. Only colour images get tints.
    """
    if modality == "CT":
        return replace(preset, brightness=preset.brightness / 3, contrast=preset.contrast / 3, gamma=0.0, tint=0.0)
    return preset if modality == COLOUR else replace(preset, tint=0.0)


COLOUR = "colour"


def augment(
    images: Tensor,
    labels: Tensor,
    preset: Preset,
    generator: torch.Generator,
    *,
    modality: str = "",
    anisotropic: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return changed copies of normalised images, float (B, C, *spatial), and of their labels, integers (B, *spatial).

    generator: on the CPU; the same state gives the same changes on every device, except for the noise. modality: "CT",
    "colour" or any other. anisotropic: the slices of the volumes lie far apart, so nothing is turned or moved out of
    its slice. Volumes are mirrored along every axis, as in nnU-Net: in a long training this helps more than it costs to
    confuse left and right.
    """
    preset = for_modality(preset, modality)
    if preset.flip:
        images, labels = _turn(images, labels, generator)
    else:
        # The changes below are made in place.
        images, labels = images.clone(), labels.clone()
    if preset.warp_share:
        images, labels = _warp(images, labels, preset, generator, anisotropic)
    return _recolour(images, preset, generator, anisotropic), labels


def _turn(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror each image along a random set of axes, and swap rows and columns of a random half if the plane is square.

    Together these are all mirrorings and quarter turns. They are exact: no pixel is interpolated.
    """
    axes = images.ndim - 2
    draws = torch.randint(2, (len(images), axes + 1), generator=generator).tolist()
    square = images.shape[-1] == images.shape[-2]
    turned_images, turned_labels = torch.empty_like(images), torch.empty_like(labels)
    for index, (across, *mirrored) in enumerate(draws):
        flips = [-1 - axis for axis in range(axes) if mirrored[axis]]
        for source, target in ((images, turned_images), (labels, turned_labels)):
            item = source[index].transpose(-1, -2) if across and square else source[index]
            target[index] = item.flip(flips)
    return turned_images, turned_labels


def _warp(
    images: Tensor, labels: Tensor, preset: Preset, generator: torch.Generator, anisotropic: bool
) -> tuple[Tensor, Tensor]:
    """Rotate, scale and deform a random part of the batch, in place."""
    chosen = _choose(len(images), preset.warp_share, generator)
    if not len(chosen):
        return images, labels
    spatial = images.shape[2:]
    matrix = _rotations(len(chosen), len(spatial), preset.rotation, generator, anisotropic)
    zoom = 1 + (torch.rand(len(chosen), 1, 1, generator=generator) * 2 - 1) * preset.scale
    matrix[:, -2:, -2:] *= zoom
    if len(spatial) == 3 and not anisotropic:
        matrix[:, 0, :] *= zoom[:, 0]
        matrix[:, 1:, 0] *= zoom[:, 0]
    grid = _grid(matrix, spatial, preset.elastic, generator, anisotropic, images.device).to(images.dtype)
    chosen = chosen.to(images.device)
    picked = labels.index_select(0, chosen).unsqueeze(1).to(images.dtype)
    moved = F.grid_sample(images.index_select(0, chosen), grid, "bilinear", "reflection", align_corners=False)
    moved_labels = F.grid_sample(picked, grid, "nearest", "reflection", align_corners=False).squeeze(1)
    # index_copy_ copies whole images, which is quicker than an assignment by index: that copies number by number.
    images.index_copy_(0, chosen, moved)
    labels.index_copy_(0, chosen, moved_labels.to(labels.dtype))
    return images, labels


def _rotations(count: int, axes: int, degrees: float, generator: torch.Generator, anisotropic: bool) -> Tensor:
    """Draw `count` rotation matrices: (count, axes, axes).

    Pictures and anisotropic volumes turn within the plane of the slice. Other volumes turn about all three axes, by
    STEEPEST_3D degrees at most.
    """
    planes = [(-2, -1)] if axes == 2 or anisotropic else [(-2, -1), (0, 1), (0, 2)]
    max_degrees = degrees if len(planes) == 1 else min(degrees, STEEPEST_3D)
    matrix = torch.eye(axes).repeat(count, 1, 1)
    for first, second in planes:
        angle = (torch.rand(count, generator=generator) * 2 - 1) * math.radians(max_degrees)
        turn = torch.eye(axes).repeat(count, 1, 1)
        turn[:, first, first] = turn[:, second, second] = torch.cos(angle)
        turn[:, first, second], turn[:, second, first] = -torch.sin(angle), torch.sin(angle)
        matrix = matrix @ turn
    return matrix


def _grid(
    matrix: Tensor,
    spatial: torch.Size,
    elastic: float,
    generator: torch.Generator,
    anisotropic: bool,
    device: torch.device,
) -> Tensor:
    """The places that grid_sample reads each pixel from: (count, *spatial, axes), on `device`.

    They are computed on a coarse mesh and interpolated, because between the points of the mesh they are nearly linear.
    The random numbers are few and are drawn on the CPU; the places, one for each pixel, are computed on `device`.
    """
    count, axes = matrix.shape[:2]
    mesh = [ELASTIC_KNOTS if axes == 3 else MESH] * axes
    length = torch.tensor(spatial, dtype=torch.float32)
    # The matrix counts in pixels, but grid_sample in halves of the image, x first. The mesh ends at pixels' centres.
    theta = (matrix * length / length[:, None] * (1 - 1 / length)).flip(1, 2)
    theta = torch.cat([theta, torch.zeros(count, axes, 1)], 2).to(device)
    grid = F.affine_grid(theta, [count, 1, *mesh], align_corners=True).movedim(-1, 1).contiguous()
    if elastic:
        knots = torch.randn(count, axes, *[ELASTIC_KNOTS] * axes, generator=generator).to(device)
        if axes == 2:
            knots = F.interpolate(knots, mesh, mode="bicubic", align_corners=True)
        reach = (2 * elastic / length).flip(0)
        if axes == 3 and anisotropic:
            reach[-1] = 0.0
        grid = grid + knots * reach.reshape(-1, *[1] * axes).to(device)
    mode = "bilinear" if axes == 2 else "trilinear"
    return F.interpolate(grid, spatial, mode=mode, align_corners=True).movedim(1, -1)


def _recolour(images: Tensor, preset: Preset, generator: torch.Generator, anisotropic: bool) -> Tensor:
    """Change sharpness, contrast, brightness, tint, gamma and noise in place, with a strength drawn for each image."""
    count, spatial_ones = len(images), [1] * (images.ndim - 2)

    def draw(spread: float, number: int = count, channels: int = 1) -> Tensor:
        drawn = torch.randn(number, channels, *spatial_ones, generator=generator) * spread
        return drawn.to(images.device, images.dtype)

    if preset.soften > 1:
        images = _soften(images, preset, generator, anisotropic)
    if preset.contrast or preset.brightness:
        images = images.mul_(torch.exp(draw(preset.contrast))).add_(draw(preset.brightness))
    if preset.tint and images.shape[1] % 3 == 0:
        for change, apply in (
            (torch.exp(draw(preset.tint, channels=3)), images.mul_),
            (draw(preset.tint, channels=3), images.add_),
        ):
            apply(change.repeat(1, images.shape[1] // 3, *spatial_ones))
    if preset.gamma and len(chosen := _choose(count, preset.gamma_share, generator)):
        chosen = chosen.to(images.device)
        picked = images.index_select(0, chosen)
        low = picked.amin([*range(1, images.ndim)], keepdim=True)
        span = (picked.amax([*range(1, images.ndim)], keepdim=True) - low).clamp_min(1e-6)
        power = torch.exp(draw(preset.gamma, len(chosen)))
        images.index_copy_(0, chosen, picked.sub_(low).div_(span).clamp_min_(1e-6).pow_(power).mul_(span).add_(low))
    if preset.noise and len(chosen := _choose(count, preset.noise_share, generator)):
        noise = _noise([len(chosen), *images.shape[1:]], generator, images.device).to(images.dtype)
        images.index_add_(0, chosen.to(images.device), noise.mul_(draw(preset.noise, len(chosen)).abs()))
    return images


def _noise(shape: list[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw standard normal noise on `device`.

    A GPU draws it itself, from a seed: a CPU would need longer for so many numbers than the GPU for a training step.
    """
    if device.type != "cuda":
        return torch.randn(shape, generator=generator).to(device)
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def _soften(images: Tensor, preset: Preset, generator: torch.Generator, anisotropic: bool) -> Tensor:
    """Blur a random part of the batch as a coarser instrument would: reduce its pixels, then interpolate them again.

    Anisotropic volumes keep all their slices.
    """
    chosen = _choose(len(images), preset.soften_share, generator)
    factor = 1 + float(torch.rand((), generator=generator)) * (preset.soften - 1)
    if len(chosen):
        spatial = images.shape[2:]
        kept = len(spatial) - 2 if anisotropic else 0
        small = [length if axis < kept else max(1, round(length / factor)) for axis, length in enumerate(spatial)]
        mode = "bilinear" if len(spatial) == 2 else "trilinear"
        chosen = chosen.to(images.device)
        coarse = F.interpolate(images.index_select(0, chosen), small, mode="area")
        images.index_copy_(0, chosen, F.interpolate(coarse, spatial, mode=mode))
    return images


def _choose(count: int, share: float, generator: torch.Generator) -> Tensor:
    """Draw the indices of a random part of a batch of `count` images, on the CPU."""
    return torch.nonzero(torch.rand(count, generator=generator) < share).flatten()
