"""Every network that can be trained, by name. Only `build` needs torch, so a web process can list them without it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ml_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

ENCODERS = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext50_32x4d",
    "se_resnet50",
    "se_resnext50_32x4d",
    "densenet121",
    "densenet169",
    "efficientnet-b0",
    "efficientnet-b1",
    "efficientnet-b2",
    "efficientnet-b3",
    "efficientnet-b4",
    "mobilenet_v2",
    "timm-efficientnet-b0",
    "vgg11_bn",
    "vgg16_bn",
    "mobileone_s0",
    "mit_b0",
    "mit_b1",
    "mit_b2",
]
_NO_TRANSFORMER = [name for name in ENCODERS if not name.startswith("mit_")]
# Encoders whose strides can be turned into dilations.
_DILATED = [name for name in _NO_TRANSFORMER if not name.startswith(("densenet", "vgg", "mobileone"))]


@dataclass(frozen=True)
class Architecture:
    """One variant. `factory` is the class in segmentation_models_pytorch, `options` what makes it this variant."""

    name: str
    label: str
    summary: str
    factory: str
    options: dict[str, Any] = field(default_factory=dict)
    encoders: list[str] = field(default_factory=lambda: ENCODERS)
    dimensions: int = 2
    minimum_size: int = 32  # pixels; a smaller input leaves nothing to pool at the bottom


_ALL = [
    Architecture("unet", "U-Net", "The classic: encoder, decoder and skip connections (Ronneberger 2015).", "Unet"),
    Architecture(
        "attention-unet",
        "Attention U-Net (scSE)",
        "U-Net whose decoder weighs channels and places (scSE, Roy 2018).",
        "Unet",
        {"decoder_attention_type": "scse"},
    ),
    Architecture(
        "unetplusplus",
        "U-Net++",
        "Nested skip connections (Zhou 2018); slower, finer.",
        "UnetPlusPlus",
        {},
        _NO_TRANSFORMER,
    ),
    Architecture("manet", "MA-Net", "Multi-scale attention in the decoder (Fan 2020).", "MAnet"),
    Architecture(
        "linknet",
        "LinkNet",
        "Adds instead of joining: light and quick (Chaurasia 2017).",
        "Linknet",
        {},
        _NO_TRANSFORMER,
    ),
    Architecture("fpn", "FPN", "Feature pyramid: sees several sizes at once (Kirillov 2019).", "FPN"),
    Architecture("pspnet", "PSPNet", "Pools over the whole image for context (Zhao 2017).", "PSPNet"),
    Architecture("pan", "PAN", "Pyramid attention (Li 2018).", "PAN", {}, _DILATED, minimum_size=128),
    Architecture(
        "deeplabv3",
        "DeepLabV3",
        "Dilated convolutions at several rates (Chen 2017).",
        "DeepLabV3",
        {},
        _DILATED,
    ),
    Architecture(
        "deeplabv3plus",
        "DeepLabV3+",
        "DeepLabV3 with a decoder for sharper edges (Chen 2018).",
        "DeepLabV3Plus",
        {},
        _DILATED,
    ),
    Architecture("upernet", "UPerNet", "Pyramid pooling and feature pyramid together (Xiao 2018).", "UPerNet"),
    Architecture("segformer", "SegFormer", "A light all-MLP decoder (Xie 2021).", "Segformer"),
]
ARCHITECTURES: dict[str, Architecture] = {item.name: item for item in _ALL}


def build(
    name: str, *, encoder: str, channels: int, classes: int, encoder_weights: str = "none"
) -> tuple[nn.Module, str]:
    """The network, and a message for the user ("" when all is as asked).

    Input (N, channels, H, W) float with H and W multiples of 32; output logits (N, classes, H, W).
    Weights of a hub that is out of reach are not an error: the network starts from random weights and the message says so.
    """
    import segmentation_models_pytorch as smp

    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        raise ConfigError(
            "architecture",
            f"There is no architecture {name!r}.",
            f"Choose one of: {', '.join(ARCHITECTURES)}.",
        )
    factory = getattr(smp, architecture.factory)
    arguments = {"encoder_name": encoder, "in_channels": channels, "classes": classes, **architecture.options}
    if encoder_weights != "none":
        try:
            return factory(encoder_weights=encoder_weights, **arguments), ""
        except Exception as error:  # the hub's client raises many kinds; each means that the weights are not to be had
            log.warning("no %s weights for %s: %s", encoder_weights, encoder, error)
            message = (
                f"The {encoder_weights} weights of {encoder} could not be loaded ({type(error).__name__}), so the training "
                "started from random weights. Check the connection to the model hub, or choose random start weights."
            )
            return factory(encoder_weights=None, **arguments), message
    return factory(encoder_weights=None, **arguments), ""
