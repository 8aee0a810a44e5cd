"""Every network that can be trained, by name. Only `build` needs torch, so a web process can list them without it."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ml_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

ENCODER_GROUPS: dict[str, list[str]] = {
    "ResNet": [
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnext50_32x4d",
        "se_resnet50",
        "se_resnext50_32x4d",
        "timm-skresnet18",
        "tu-resnet10t",
        "tu-resnet18d",
        "tu-res2net50_26w_4s",
        "tu-resnest26d",
    ],
    "DenseNet and DPN": ["densenet121", "densenet169", "dpn68"],
    "EfficientNet": [
        "efficientnet-b0",
        "efficientnet-b1",
        "efficientnet-b2",
        "efficientnet-b3",
        "efficientnet-b4",
        "timm-efficientnet-b0",
        "timm-tf_efficientnet_lite0",
        "tu-tf_efficientnetv2_b0",
    ],
    "Light": [
        "mobilenet_v2",
        "mobileone_s0",
        "tu-mobilenetv3_small_100",
        "tu-mobilenetv3_large_100",
        "tu-mobilenetv4_conv_small",
        "tu-ghostnet_100",
        "tu-regnety_004",
    ],
    "VGG and HRNet": ["vgg11_bn", "vgg16_bn", "tu-hrnet_w18_small"],
    "ConvNeXt": ["tu-convnext_atto", "tu-convnextv2_atto", "tu-edgenext_small"],
    "Transformer": ["mit_b0", "mit_b1", "mit_b2", "tu-pvt_v2_b0"],
    "Plain Vision Transformer": ["tu-vit_tiny_patch16_224", "tu-vit_small_patch16_224"],
    "From scratch": ["plain-8", "plain-12", "plain-16", "plain-24", "plain-32", "plain-48"],
}
"""Heading → encoders. tu-: from timm. From scratch: the number is the width, the features at full resolution."""
ENCODERS = [name for group in ENCODER_GROUPS.values() for name in group]
_SCRATCH, _VIT = ENCODER_GROUPS["From scratch"], ENCODER_GROUPS["Plain Vision Transformer"]
_PRETRAINABLE = [name for name in ENCODERS if name not in {*_SCRATCH, *_VIT}]
# smp's SegFormer encoders lack the half resolution that these decoders build on; timm's fill it with nothing.
_FULL_PYRAMID = [name for name in _PRETRAINABLE if not name.startswith("mit_")]
_NOT_DILATED = ("densenet", "vgg", "tu-hrnet", "tu-ghostnet", "tu-edgenext", "tu-pvt")
# Encoders whose strides can be turned into dilations.
_DILATED = [name for name in _PRETRAINABLE if not name.startswith(_NOT_DILATED)]

COARSEST = 4  # voxels; no axis is pooled below that
MOST_STAGES = 6
PATCH = {2: (256, 256), 3: (64, 64, 64)}  # what arguments are made for when nobody names a patch


@dataclass(frozen=True)
class Architecture:
    """One variant. `factory` is the class that makes it, `options` what makes it this variant.

    library: "smp" (segmentation_models_pytorch), "plain" (ml_core.networks.plain_unet) or "monai". minimum_size and multiple: pixels per
    axis, of the networks whose depth does not follow from the patch. deep_supervision: whether coarser outputs can learn too.
    """

    name: str
    label: str
    summary: str
    factory: str
    options: dict[str, Any] = field(default_factory=dict)
    encoders: list[str] = field(default_factory=lambda: _PRETRAINABLE)
    dimensions: int = 2
    minimum_size: int = 32  # a smaller input leaves nothing to pool at the bottom
    multiple: int = 32
    library: str = "smp"
    deep_supervision: bool = False


def _plain(name: str, label: str, summary: str, dimensions: int, **options: Any) -> Architecture:
    encoders = ["plain-16", "plain-24", "plain-32"] if dimensions == 2 else ["plain-16", "plain-8", "plain-32"]
    return Architecture(
        name, label, summary, "PlainUNet", options, encoders, dimensions, 16, 1, "plain", deep_supervision=True
    )


def _monai(
    name: str, label: str, summary: str, factory: str, minimum_size: int = 16, multiple: int = 1, **rest: Any
) -> Architecture:
    encoders = ["plain-24", "plain-12", "plain-48"] if factory == "SwinUNETR" else ["plain-16", "plain-8", "plain-32"]
    return Architecture(name, label, summary, factory, {}, encoders, 3, minimum_size, multiple, "monai", **rest)


_ALL = [
    Architecture("unet", "U-Net", "The classic: encoder, decoder and skip connections (Ronneberger 2015).", "Unet"),
    _plain(
        "plain-unet",
        "Plain U-Net",
        "U-Net from scratch in nnU-Net's shape: right for little data and few cores (Isensee 2021).",
        2,
    ),
    _plain(
        "residual-unet",
        "Residual U-Net",
        "The plain U-Net with residual stages in its encoder (Isensee 2024).",
        2,
        residual=True,
    ),
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
        _FULL_PYRAMID,
    ),
    Architecture(
        "attention-unetplusplus",
        "U-Net++ (scSE)",
        "U-Net++ whose decoder weighs channels and places (scSE, Roy 2018).",
        "UnetPlusPlus",
        {"decoder_attention_type": "scse"},
        _FULL_PYRAMID,
    ),
    Architecture("manet", "MA-Net", "Multi-scale attention in the decoder (Fan 2020).", "MAnet"),
    Architecture(
        "linknet",
        "LinkNet",
        "Adds instead of joining: light and quick (Chaurasia 2017).",
        "Linknet",
        {},
        _FULL_PYRAMID,
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
    Architecture(
        "dpt",
        "DPT",
        "Vision Transformer with a convolutional decoder (Ranftl 2021); wants much data.",
        "DPT",
        {"dynamic_img_size": True},
        _VIT,
    ),
    _plain(
        "plain-unet-3d",
        "Plain U-Net 3D",
        "U-Net from scratch in nnU-Net's shape, pooled as the voxels' spacing asks (Isensee 2021).",
        3,
    ),
    _plain(
        "residual-unet-3d",
        "Residual U-Net 3D",
        "The plain 3D U-Net with residual stages in its encoder (Isensee 2024).",
        3,
        residual=True,
    ),
    _monai(
        "unet-3d",
        "U-Net 3D (MONAI)",
        "U-Net of residual units, coarse from its first layer (Kerfoot 2018): quick.",
        "UNet",
    ),
    _monai(
        "attention-unet-3d",
        "Attention U-Net 3D",
        "Gates decide what passes the skip connections (Oktay 2018).",
        "AttentionUnet",
    ),
    _monai("segresnet-3d", "SegResNet", "Residual encoder, light decoder (Myronenko 2018).", "SegResNet", multiple=8),
    _monai(
        "dynunet-3d",
        "DynUNet",
        "nnU-Net's own network (Isensee 2021), with instance normalisation; thorough and slow on CPUs.",
        "DynUNet",
        deep_supervision=True,
    ),
    _monai(
        "unetr-3d",
        "UNETR",
        "Transformer encoder, convolutional decoder (Hatamizadeh 2022); wants much data.",
        "UNETR",
        minimum_size=32,
        multiple=16,
    ),
    _monai(
        "swinunetr-3d",
        "Swin UNETR",
        "Shifted-window transformer encoder (Hatamizadeh 2022); wants a GPU.",
        "SwinUNETR",
        minimum_size=64,
        multiple=32,
    ),
]
ARCHITECTURES: dict[str, Architecture] = {item.name: item for item in _ALL}


def network_arguments(
    name: str,
    *,
    encoder: str,
    patch: tuple[int, ...],
    spacing: tuple[float, ...] | None = None,
    deep_supervision: bool = False,
) -> dict[str, Any]:
    """What `build` needs beside the encoder, as JSON. A plan keeps it, so that the same network can be built again later.

    patch: pixels per axis that the network is trained on; spacing: their size, None for equal. Raises ConfigError where the
    patch does not fit.
    """
    architecture = find(name)
    if architecture.dimensions == 3 and any(length % architecture.multiple for length in patch):
        raise ConfigError(
            "patch",
            f"{architecture.label} needs patches whose sides are multiples of {architecture.multiple}.",
            "Choose another patch size, or another architecture.",
        )
    if architecture.library == "smp":
        return {}
    width = int(encoder.rpartition("-")[2])
    strides, kernels = pooling(patch, spacing or (1.0,) * len(patch))
    most = min(16 * width, 512 if architecture.dimensions == 2 else 320)
    features = [min(width * 2**stage, most) for stage in range(len(strides))]
    if architecture.factory == "PlainUNet":
        return {
            "features": features,
            "strides": strides,
            "kernels": kernels,
            "convolutions": [1 if architecture.dimensions == 2 else 2] + [2] * (len(strides) - 1),
            "norm": "batch",
            "deep_supervision": deep_supervision,
            **architecture.options,
        }
    if architecture.factory in ("UNet", "AttentionUnet"):
        return {"channels": features, "strides": strides[1:]}
    if architecture.factory == "DynUNet":
        supervision = {"deep_supervision": deep_supervision, "deep_supr_num": max(1, len(strides) - 3)}
        shape = {"filters": features, "strides": strides, "kernel_size": kernels, "upsample_kernel_size": strides[1:]}
        return {**shape, **supervision}
    if architecture.factory == "SegResNet":
        return {"init_filters": width}
    if architecture.factory == "UNETR":
        transformer = {"hidden_size": 24 * width, "mlp_dim": 96 * width, "num_heads": 3 * width // 8}
        return {"img_size": list(patch), "feature_size": width, **transformer}
    return {"feature_size": width}


def input_multiple(name: str, arguments: dict[str, Any] | None = None) -> tuple[int, ...]:
    """Per axis the number of pixels that an input's size must be a multiple of; of UNETR, that it must be."""
    architecture = find(name)
    arguments = arguments or {}
    if "img_size" in arguments:
        return tuple(arguments["img_size"])
    if strides := arguments.get("strides"):
        return tuple(math.prod(axis) for axis in zip(*strides, strict=True))
    return (architecture.multiple,) * architecture.dimensions


def pooling(patch: tuple[int, ...], spacing: tuple[float, ...]) -> tuple[list[list[int]], list[list[int]]]:
    """(strides, kernels) of each stage, one number per axis, as in nnU-Net (Isensee 2021).

    The finest axes are halved first, until all are alike within a factor of two; until then no kernel reaches across the coarse
    ones. An axis is halved while its size is even and leaves COARSEST pixels; there are MOST_STAGES at most.
    """
    axes = range(len(patch))
    size, step = list(patch), list(spacing)
    reaches = [False] * len(patch)
    strides, kernels = [[1] * len(patch)], []
    while True:
        reaches = [reaches[axis] or step[axis] < 2 * min(step) for axis in axes]
        kernels.append([3 if reaches[axis] else 1 for axis in axes])
        possible = [axis for axis in axes if size[axis] % 2 == 0 and size[axis] >= 2 * COARSEST]
        if not possible or len(strides) == MOST_STAGES:
            return strides, kernels
        finest = min(step[axis] for axis in possible)
        stride = [2 if axis in possible and step[axis] < 2 * finest else 1 for axis in axes]
        size = [length // by for length, by in zip(size, stride, strict=True)]
        step = [length * by for length, by in zip(step, stride, strict=True)]
        strides.append(stride)


def find(name: str) -> Architecture:
    """By its name. Raises ConfigError."""
    if name not in ARCHITECTURES:
        raise ConfigError(
            "architecture", f"There is no architecture {name!r}.", f"Choose one of: {', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[name]


def build(
    name: str,
    *,
    encoder: str,
    channels: int,
    classes: int,
    encoder_weights: str = "none",
    arguments: dict[str, Any] | None = None,
) -> tuple[nn.Module, str]:
    """The network, and a message for the user ("" when all is as asked).

    arguments: from `network_arguments`; None makes them for a middling patch of equal spacing.
    Input float (N, channels, *spatial), sizes as `input_multiple` says; output logits (N, classes, *spatial), in training with
    deep supervision a list of them, from full resolution to coarse.
    Weights of a hub that is out of reach are not an error: the network starts from random weights and the message says so.
    """
    architecture = find(name)
    if architecture.library == "smp":
        return _build_smp(architecture, encoder, channels, classes, encoder_weights)
    if arguments is None:
        arguments = network_arguments(name, encoder=encoder, patch=PATCH[architecture.dimensions])
    if architecture.library == "plain":
        from ml_core.networks.plain_unet import PlainUNet

        return PlainUNet(channels, classes, **arguments), ""
    from ml_core.networks.monai_3d import make

    return make(architecture.factory, channels, classes, arguments), ""


def _build_smp(
    architecture: Architecture, encoder: str, channels: int, classes: int, encoder_weights: str
) -> tuple[nn.Module, str]:
    import segmentation_models_pytorch as smp

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
