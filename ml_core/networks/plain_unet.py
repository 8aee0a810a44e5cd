"""A U-Net from scratch for small data and few cores, in 2D and 3D.

It has the shape of nnU-Net's, with fewer convolutions at the fine resolutions, where each costs most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Slope of the LeakyReLU for negative values.
SLOPE = 0.01

_CONVOLUTION: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.ConvTranspose2d | nn.ConvTranspose3d]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORM: dict[int, type[nn.BatchNorm2d | nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE_NORM: dict[int, type[nn.InstanceNorm2d | nn.InstanceNorm3d]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class PlainUNet(nn.Module):
    """A U-Net of strided convolutions, transposed convolutions, and a skip connection at every resolution.

    The design is nnU-Net's (Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z). It differs in that an
    encoder stage may have a single convolution and each decoder stage has one, as in nnU-Net's later residual presets
    (Isensee et al. 2024, arXiv:2404.09556). Fine stages take most of the time, and most is learned in the others.

    `features`, `strides`, `kernels` and `convolutions` have one entry per stage, finest first. A stride or kernel has
    one number per axis. `norm` is "batch", or "instance" for batches that are too small for statistics. With
    `residual`, each encoder stage adds its later convolutions to the result of its first (He et al. 2016,
    arXiv:1512.03385).

    The input is (N, channels, *spatial); each size must be a multiple of the product of the strides of its axis. The
    output are logits (N, classes, *spatial). In training with `deep_supervision` it is a list of logits from full
    resolution to coarse, without the two coarsest stages.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernels: Sequence[Sequence[int]],
        convolutions: Sequence[int],
        norm: str = "batch",
        residual: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        dimensions = len(strides[0])
        self.encoder, self.ups, self.decoder, self.heads = (nn.ModuleList() for _ in range(4))
        width = channels
        for stage_width, stride, kernel, count in zip(features, strides, kernels, convolutions, strict=True):
            first = ConvBlock(width, stage_width, kernel, stride, norm)
            later = [ConvBlock(stage_width, stage_width, kernel, [1] * dimensions, norm) for _ in range(count - 1)]
            self.encoder.append(
                nn.Sequential(first, Residual(later)) if residual and later else nn.Sequential(first, *later)
            )
            width = stage_width
        supervised = max(1, len(features) - 2) if deep_supervision else 1
        for stage in reversed(range(len(features) - 1)):
            stage_width, stride = features[stage], tuple(strides[stage + 1])
            up = _TRANSPOSED[dimensions](width, stage_width, stride, stride)  # type: ignore[arg-type]  # any length
            self.ups.append(up)
            self.decoder.append(ConvBlock(2 * stage_width, stage_width, kernels[stage], [1] * dimensions, norm))
            width = stage_width
        # The heads are ordered from coarse to fine, like the decoder stages whose results they turn into logits.
        self.heads.extend(
            _CONVOLUTION[dimensions](features[stage], classes, 1) for stage in reversed(range(supervised))
        )
        self.apply(_start)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        skips, x = [], images
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        decoded = []
        for up, stage in zip(self.ups, self.decoder, strict=True):
            x = stage(torch.cat([up(x), skips.pop()], 1))
            decoded.append(x)
        if self.training and len(self.heads) > 1:
            return [head(x) for head, x in zip(reversed(self.heads), reversed(decoded), strict=False)]
        logits: Tensor = self.heads[-1](x)
        return logits


class ConvBlock(nn.Sequential):
    """Convolution, normalisation and LeakyReLU. Padding keeps the size; only `stride` reduces it."""

    def __init__(self, channels: int, features: int, kernel: Sequence[int], stride: Sequence[int], norm: str) -> None:
        dimensions = len(kernel)
        shape: Any = {"kernel_size": tuple(kernel), "stride": tuple(stride), "padding": tuple(n // 2 for n in kernel)}
        convolution = _CONVOLUTION[dimensions](channels, features, **shape, bias=False)
        super().__init__(convolution, _normalisation(norm, features, dimensions), nn.LeakyReLU(SLOPE, inplace=True))


class Residual(nn.Module):
    """A residual connection around blocks: x + blocks(x)."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.blocks(x)
        return changed + x


def _normalisation(norm: str, features: int, dimensions: int) -> nn.Module:
    if norm == "batch":
        return _BATCH_NORM[dimensions](features)
    return _INSTANCE_NORM[dimensions](features, affine=True)


def _start(module: nn.Module) -> None:
    """Initialise the weights of a convolution for LeakyReLU (He et al. 2015, arXiv:1502.01852)."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
