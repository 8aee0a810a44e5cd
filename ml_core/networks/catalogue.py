"""The catalogue of networks that can be trained. Each entry holds the functions that plan and build its network.

To add a network, add an entry here, with its arguments, and a function that builds it in a module of its own. That
module is imported only when the network is built, because a web process lists the entries without loading torch.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ml_core.errors import ConfigError
from ml_core.networks.architecture import Architecture, Arguments, Build, Use
from ml_core.networks.encoders import DILATED, FULL_PYRAMID, PRETRAINABLE, VIT
from ml_core.networks.pooling import pooling

if TYPE_CHECKING:
    from torch import nn

# Default patch in pixels per axis, by dimensions.
PATCH = {2: (256, 256), 3: (64, 64, 64)}


def find(name: str) -> Architecture:
    """Return the entry of a network by its name. Raises ConfigError architecture for an unknown name."""
    if name not in ARCHITECTURES:
        raise ConfigError(
            "architecture", f"There is no architecture {name!r}.", f"Choose one of: {', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[name]


def network_arguments(
    name: str,
    *,
    encoder: str,
    patch: tuple[int, ...],
    spacing: tuple[float, ...] | None = None,
    deep_supervision: bool = False,
) -> Arguments:
    """Compute the arguments of `build`. A plan keeps them, so that the same network can be built again later.

    `patch` is the size of a training patch in pixels per axis. `spacing` is the size of a pixel per axis; None means
    the same on all axes. Raises ConfigError patch if the patch does not fit the network.
    """
    architecture = find(name)
    if any(length % architecture.patch_multiple for length in patch):
        raise ConfigError(
            "patch",
            f"{architecture.label} needs patches whose sides are multiples of {architecture.patch_multiple}.",
            "Choose another patch size, or another architecture.",
        )
    return architecture.arguments(Use(encoder, patch, spacing or (1.0,) * len(patch), deep_supervision))


def build(
    name: str,
    *,
    encoder: str,
    channels: int,
    classes: int,
    encoder_weights: str = "none",
    arguments: Arguments | None = None,
) -> tuple[nn.Module, str]:
    """Build a network. Returns it with a message for the user, which is "" if everything is as requested.

    `arguments` come from `network_arguments`; None computes them for the patch PATCH of equal spacing.

    The network takes float (N, channels, *spatial), with sizes as `Architecture.multiple` requires, and returns logits
    (N, classes, *spatial). In training with deep supervision it returns a list of logits, from full resolution to
    coarse. If the weights of an encoder cannot be downloaded, the network starts from random weights, and the message
    says so.
    """
    architecture = find(name)
    if arguments is None:
        arguments = network_arguments(name, encoder=encoder, patch=PATCH[architecture.dimensions])
    return architecture.build(channels, classes, arguments, encoder=encoder, encoder_weights=encoder_weights)


def _from_scratch(module: str, function: str) -> Build:
    """Make a Build that calls `function` of a `module` in ml_core.networks with channels, classes and arguments."""

    def build(
        channels: int, classes: int, arguments: Arguments, *, encoder: str, encoder_weights: str
    ) -> tuple[nn.Module, str]:
        make = getattr(importlib.import_module(f"ml_core.networks.{module}"), function)
        return make(channels, classes, **arguments), ""

    return build


def _with_encoder(factory: str, options: Mapping[str, object]) -> Build:
    """Make a Build for the class `factory` of segmentation_models_pytorch with more arguments `options`."""

    def build(
        channels: int, classes: int, arguments: Arguments, *, encoder: str, encoder_weights: str
    ) -> tuple[nn.Module, str]:
        from ml_core.networks.pretrained import make

        return make(factory, channels, classes, encoder=encoder, encoder_weights=encoder_weights, options=options)

    return build


def _features(use: Use, stages: int, maximum: int) -> list[int]:
    """Number of features of each stage: each has twice as many as the one before, but no more than `maximum`."""
    return [min(use.width * 2**stage, maximum) for stage in range(stages)]


def _plain_arguments(use: Use, *, residual: bool) -> Arguments:
    strides, kernels = pooling(use.patch, use.spacing)
    is_2d = len(use.patch) == 2
    return {
        "features": _features(use, len(strides), min(16 * use.width, 512 if is_2d else 320)),
        "strides": strides,
        "kernels": kernels,
        "convolutions": [1 if is_2d else 2] + [2] * (len(strides) - 1),
        "norm": "batch",
        "deep_supervision": use.deep_supervision,
        **({"residual": True} if residual else {}),
    }


def _unet_arguments(use: Use) -> Arguments:
    strides, _ = pooling(use.patch, use.spacing)
    return {"channels": _features(use, len(strides), min(16 * use.width, 320)), "strides": strides[1:]}


def _dynunet_arguments(use: Use) -> Arguments:
    strides, kernels = pooling(use.patch, use.spacing)
    return {
        "filters": _features(use, len(strides), min(16 * use.width, 320)),
        "strides": strides,
        "kernel_size": kernels,
        "upsample_kernel_size": strides[1:],
        "deep_supervision": use.deep_supervision,
        "deep_supr_num": max(1, len(strides) - 3),
    }


def _unetr_arguments(use: Use) -> Arguments:
    transformer = {"hidden_size": 24 * use.width, "mlp_dim": 96 * use.width, "num_heads": 3 * use.width // 8}
    return {"img_size": list(use.patch), "feature_size": use.width, **transformer}


def _by_strides(arguments: Arguments) -> tuple[int, ...]:
    """The product of the strides per axis, which the sizes of an input must be multiples of."""
    return tuple(math.prod(axis) for axis in zip(*arguments["strides"], strict=True))


def _smp(
    name: str,
    label: str,
    summary: str,
    factory: str,
    encoders: list[str] = PRETRAINABLE,
    minimum_size: int = 32,
    **options: Any,
) -> Architecture:
    """Make the entry of a network from segmentation_models_pytorch. `options` are arguments that select the variant."""
    return Architecture(
        name=name,
        label=label,
        summary=summary,
        dimensions=2,
        encoders=encoders,
        build=_with_encoder(factory, options),
        arguments=lambda use: {},
        multiple=lambda arguments: (32, 32),
        minimum_size=minimum_size,
    )


def _plain(name: str, label: str, summary: str, dimensions: int, *, residual: bool = False) -> Architecture:
    """Make the entry of a network from ml_core.networks.plain_unet."""
    rates = {
        2: (4e-3, "A plain U-Net with normalised layers learns quickest from 0.004, with warm-up and cosine decay."),
        3: (2e-3, "Small batches of 3D patches learn steadily from 0.002, with warm-up and cosine decay."),
    }
    return Architecture(
        name=name,
        label=label,
        summary=summary,
        dimensions=dimensions,
        encoders=["plain-16", "plain-24", "plain-32"] if dimensions == 2 else ["plain-16", "plain-8", "plain-32"],
        build=_from_scratch("plain_unet", "PlainUNet"),
        arguments=partial(_plain_arguments, residual=residual),
        multiple=_by_strides,
        minimum_size=16,
        deep_supervision=True,
        learning_rate=rates[dimensions],
        suits_muon=dimensions == 2,
    )


def _monai(
    name: str, label: str, summary: str, function: str, arguments: Callable[[Use], Arguments], **more: Any
) -> Architecture:
    """Make the entry of a network from ml_core.networks.monai_3d. `more` overrides the fields that suit a U-Net."""
    usual = {"encoders": ["plain-16", "plain-8", "plain-32"], "multiple": _by_strides, "minimum_size": 16}
    return Architecture(
        name=name,
        label=label,
        summary=summary,
        dimensions=3,
        build=_from_scratch("monai_3d", function),
        arguments=arguments,
        **{**usual, **more},
    )


_ALL = [
    _smp("unet", "U-Net", "The classic: encoder, decoder and skip connections (Ronneberger 2015).", "Unet"),
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
    _smp(
        "attention-unet",
        "Attention U-Net (scSE)",
        "U-Net whose decoder weighs channels and places (scSE, Roy 2018).",
        "Unet",
        decoder_attention_type="scse",
    ),
    _smp(
        "unetplusplus",
        "U-Net++",
        "Nested skip connections (Zhou 2018); slower, finer.",
        "UnetPlusPlus",
        FULL_PYRAMID,
    ),
    _smp(
        "attention-unetplusplus",
        "U-Net++ (scSE)",
        "U-Net++ whose decoder weighs channels and places (scSE, Roy 2018).",
        "UnetPlusPlus",
        FULL_PYRAMID,
        decoder_attention_type="scse",
    ),
    _smp("manet", "MA-Net", "Multi-scale attention in the decoder (Fan 2020).", "MAnet"),
    _smp("linknet", "LinkNet", "Adds instead of joining: light and quick (Chaurasia 2017).", "Linknet", FULL_PYRAMID),
    _smp("fpn", "FPN", "Feature pyramid: sees several sizes at once (Kirillov 2019).", "FPN"),
    _smp("pspnet", "PSPNet", "Pools over the whole image for context (Zhao 2017).", "PSPNet"),
    _smp("pan", "PAN", "Pyramid attention (Li 2018).", "PAN", DILATED, minimum_size=128),
    _smp("deeplabv3", "DeepLabV3", "Dilated convolutions at several rates (Chen 2017).", "DeepLabV3", DILATED),
    _smp(
        "deeplabv3plus",
        "DeepLabV3+",
        "DeepLabV3 with a decoder for sharper edges (Chen 2018).",
        "DeepLabV3Plus",
        DILATED,
    ),
    _smp("upernet", "UPerNet", "Pyramid pooling and feature pyramid together (Xiao 2018).", "UPerNet"),
    _smp("segformer", "SegFormer", "A light all-MLP decoder (Xie 2021).", "Segformer"),
    _smp(
        "dpt",
        "DPT",
        "Vision Transformer with a convolutional decoder (Ranftl 2021); wants much data.",
        "DPT",
        VIT,
        dynamic_img_size=True,
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
        "unet",
        _unet_arguments,
    ),
    _monai(
        "attention-unet-3d",
        "Attention U-Net 3D",
        "Gates decide what passes the skip connections (Oktay 2018).",
        "attention_unet",
        _unet_arguments,
    ),
    _monai(
        "segresnet-3d",
        "SegResNet",
        "Residual encoder, light decoder (Myronenko 2018).",
        "segresnet",
        lambda use: {"init_filters": use.width},
        patch_multiple=8,
        multiple=lambda arguments: (8, 8, 8),
    ),
    _monai(
        "dynunet-3d",
        "DynUNet",
        "nnU-Net's own network (Isensee 2021), with instance normalisation; thorough and slow on CPUs.",
        "dynunet",
        _dynunet_arguments,
        deep_supervision=True,
    ),
    _monai(
        "unetr-3d",
        "UNETR",
        "Transformer encoder, convolutional decoder (Hatamizadeh 2022); wants much data.",
        "unetr",
        _unetr_arguments,
        patch_multiple=16,
        multiple=lambda arguments: tuple(arguments["img_size"]),
        minimum_size=32,
        takes_any_size=False,
    ),
    _monai(
        "swinunetr-3d",
        "Swin UNETR",
        "Shifted-window transformer encoder (Hatamizadeh 2022); wants a GPU.",
        "swin_unetr",
        lambda use: {"feature_size": use.width},
        encoders=["plain-24", "plain-12", "plain-48"],
        patch_multiple=32,
        multiple=lambda arguments: (32, 32, 32),
        minimum_size=64,
    ),
]
ARCHITECTURES: dict[str, Architecture] = {item.name: item for item in _ALL}
