"""The encoders that networks can be built with, in groups by what the networks need of them."""

from __future__ import annotations

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
"""Heading → encoders. "tu-" marks those from timm.

The number of a from-scratch encoder is its features at full resolution.
"""
ENCODERS = [name for group in ENCODER_GROUPS.values() for name in group]
VIT = ENCODER_GROUPS["Plain Vision Transformer"]
PRETRAINABLE = [name for name in ENCODERS if name not in {*ENCODER_GROUPS["From scratch"], *VIT}]
# Encoders with a feature map at half resolution, which some decoders need. segmentation_models_pytorch's SegFormer
# encoders (mit_) have none; timm's transformers give an empty one instead.
FULL_PYRAMID = [name for name in PRETRAINABLE if not name.startswith("mit_")]
_NOT_DILATED = ("densenet", "vgg", "tu-hrnet", "tu-ghostnet", "tu-edgenext", "tu-pvt")
# Encoders whose last strides can be replaced by dilations.
DILATED = [name for name in PRETRAINABLE if not name.startswith(_NOT_DILATED)]
