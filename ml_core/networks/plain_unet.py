"""A U-Net from scratch for small data and few cores, in 2D and 3D: nnU-Net's shape with less work where there are most pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

SLOPE = 0.01  # of the LeakyReLU

_CONVOLUTION: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.ConvTranspose2d | nn.ConvTranspose3d]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORM: dict[int, type[nn.BatchNorm2d | nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE_NORM: dict[int, type[nn.InstanceNorm2d | nn.InstanceNorm3d]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class PlainUNet(nn.Module):
    """Encoder of strided convolutions, decoder of transposed ones, a skip at every resolution (Isensee 2021, nnU-Net).

    `features`, `strides`, `kernels` and `convolutions` have one entry per stage, finest first; strides and kernels one number per
    axis. Unlike nnU-Net the plan may give a stage a single convolution, and the decoder has one per stage, as in nnU-Net's later
    residual presets (Isensee 2024): most time goes where there are most pixels, and most is learned elsewhere.

    norm: "batch", or "instance" for batches too small to measure anything. residual: each encoder stage adds what its later
    convolutions change (He 2016).

    Input (N, channels, *spatial), each size a multiple of the product of that axis's strides → logits (N, classes, *spatial).
    In training with `deep_supervision` a list of logits, from full resolution to coarse, without the two coarsest stages.
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
        for own, stride, kernel, count in zip(features, strides, kernels, convolutions, strict=True):
            first = ConvBlock(width, own, kernel, stride, norm)
            rest = [ConvBlock(own, own, kernel, [1] * dimensions, norm) for _ in range(count - 1)]
            self.encoder.append(
                nn.Sequential(first, Residual(rest)) if residual and rest else nn.Sequential(first, *rest)
            )
            width = own
        supervised = max(1, len(features) - 2) if deep_supervision else 1
        for stage in reversed(range(len(features) - 1)):
            own, stride = features[stage], tuple(strides[stage + 1])
            self.ups.append(_TRANSPOSED[dimensions](width, own, stride, stride))  # type: ignore[arg-type]  # ints or tuples of any length
            self.decoder.append(ConvBlock(2 * own, own, kernels[stage], [1] * dimensions, norm))
            width = own
        # Coarse to fine, like the decoder's last stages, which they read.
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
        found = []
        for up, stage in zip(self.ups, self.decoder, strict=True):
            x = stage(torch.cat([up(x), skips.pop()], 1))
            found.append(x)
        if self.training and len(self.heads) > 1:
            return [head(x) for head, x in zip(reversed(self.heads), reversed(found), strict=False)]
        logits: Tensor = self.heads[-1](x)
        return logits


class ConvBlock(nn.Sequential):
    """Convolution → normalisation → LeakyReLU; the size changes by `stride` alone."""

    def __init__(self, channels: int, features: int, kernel: Sequence[int], stride: Sequence[int], norm: str) -> None:
        dimensions = len(kernel)
        shape: Any = {"kernel_size": tuple(kernel), "stride": tuple(stride), "padding": tuple(n // 2 for n in kernel)}
        convolution = _CONVOLUTION[dimensions](channels, features, **shape, bias=False)
        super().__init__(convolution, _normalisation(norm, features, dimensions), nn.LeakyReLU(SLOPE, inplace=True))


class Residual(nn.Module):
    """x + blocks(x)."""

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
    """He 2015."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
