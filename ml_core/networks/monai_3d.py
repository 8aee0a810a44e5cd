"""MONAI's 3D networks, each from its channels, its classes and the arguments of its entry in ml_core.networks.catalogue.

Importing MONAI takes seconds.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unet import UNet
from monai.networks.nets.unetr import UNETR
from torch import Tensor, nn


class SupervisedDynUNet(DynUNet):
    """DynUNet whose deep supervision is a list of logits in their own sizes, as the loss wants it; MONAI enlarges them all."""

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        logits: Tensor = self.output_block(self.skip_layers(x))
        if not (self.training and self.deep_supervision):
            return logits
        coarser = list(self.heads)
        # MONAI keeps the last step's tensors here, which would hold its memory and keep the network from being copied.
        self.heads[:] = [torch.empty(0)] * len(coarser)
        return [logits, *coarser]


def unet(channels: int, classes: int, /, **arguments: Any) -> nn.Module:
    return UNet(3, channels, classes, norm="INSTANCE", num_res_units=2, **arguments)


def attention_unet(channels: int, classes: int, /, **arguments: Any) -> nn.Module:
    return AttentionUnet(3, channels, classes, **arguments)


def segresnet(channels: int, classes: int, /, **arguments: Any) -> nn.Module:
    return SegResNet(3, in_channels=channels, out_channels=classes, **arguments)


def dynunet(channels: int, classes: int, /, **arguments: Any) -> nn.Module:
    return SupervisedDynUNet(3, channels, classes, **arguments)


def unetr(channels: int, classes: int, /, **arguments: Any) -> nn.Module:
    return UNETR(channels, classes, **arguments)


def swin_unetr(channels: int, classes: int, /, **arguments: Any) -> nn.Module:
    return SwinUNETR(channels, classes, **arguments)
