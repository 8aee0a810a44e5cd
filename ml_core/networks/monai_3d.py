"""Functions that build MONAI's 3D networks from channels, classes and the arguments of ml_core.networks.catalogue.

Importing MONAI takes seconds, so this module is imported only when a network is built.
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
    """DynUNet that returns a list of logits, each in its own size, when deep supervision trains coarser outputs.

    The loss needs this form. MONAI's own DynUNet enlarges them all to full resolution.
    """

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        logits: Tensor = self.output_block(self.skip_layers(x))
        if not (self.training and self.deep_supervision):
            return logits
        coarser = list(self.heads)
        # MONAI keeps the tensors of the last step in `heads`. They would occupy memory, and a network that holds them
        # cannot be copied.
        self.heads[:] = [torch.empty(0)] * len(coarser)
        return [logits, *coarser]


def unet(channels: int, classes: int, /, **arguments: Any) -> nn.Module:
    """Build a U-Net of residual units (Kerfoot et al. 2018, https://doi.org/10.1007/978-3-030-12029-0_40)."""
    return UNet(3, channels, classes, norm="INSTANCE", num_res_units=2, **arguments)


def attention_unet(channels: int, classes: int, /, **arguments: Any) -> nn.Module:
    """Build an Attention U-Net (Oktay et al. 2018, arXiv:1804.03999)."""
    return AttentionUnet(3, channels, classes, **arguments)


def segresnet(channels: int, classes: int, /, **arguments: Any) -> nn.Module:
    """Build a SegResNet (Myronenko 2018, arXiv:1810.11654)."""
    return SegResNet(3, in_channels=channels, out_channels=classes, **arguments)


def dynunet(channels: int, classes: int, /, **arguments: Any) -> nn.Module:
    """Build nnU-Net's network (Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z)."""
    return SupervisedDynUNet(3, channels, classes, **arguments)


def unetr(channels: int, classes: int, /, **arguments: Any) -> nn.Module:
    """Build a UNETR (Hatamizadeh et al. 2022, arXiv:2103.10504)."""
    return UNETR(channels, classes, **arguments)


def swin_unetr(channels: int, classes: int, /, **arguments: Any) -> nn.Module:
    """Build a Swin UNETR (Hatamizadeh et al. 2022, arXiv:2201.01266)."""
    return SwinUNETR(channels, classes, **arguments)
