"""Every network builds from JSON, learns, and gives logits of its input's size."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys

import pytest
import torch

from ml_core.errors import ConfigError
from ml_core.networks.catalogue import ARCHITECTURES, build, find, network_arguments
from ml_core.networks.encoders import ENCODER_GROUPS, ENCODERS
from ml_core.networks.pooling import pooling

HEAVY = {"dpt", "unetr-3d", "swinunetr-3d", "segresnet-3d"}  # seconds each: built, not trained
QUICK = {"unet": "tu-mobilenetv3_small_100", "plain-unet": "plain-16"}


def encoder_of(name: str) -> str:
    offered = ARCHITECTURES[name].encoders
    return next(item for item in ("mobilenet_v2", "plain-8", offered[0]) if item in offered)


def patch_of(name: str) -> tuple[int, ...]:
    architecture = ARCHITECTURES[name]
    return (max(32, architecture.minimum_size),) * architecture.dimensions


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in HEAVY])
def test_every_architecture_takes_a_step(name: str) -> None:
    torch.manual_seed(0)
    encoder, patch = encoder_of(name), patch_of(name)
    patch = tuple(max(64, length) for length in patch) if len(patch) == 2 else patch
    arguments = json.loads(json.dumps(network_arguments(name, encoder=encoder, patch=patch)))
    assert all(n % by == 0 for n, by in zip(patch, find(name).multiple(arguments), strict=True))
    network, message = build(name, encoder=encoder, channels=2, classes=3, arguments=arguments)
    logits = network(torch.randn(2, 2, *patch))
    assert logits.shape == (2, 3, *patch)
    logits.square().mean().backward()
    gradients = [item.grad for item in network.parameters() if item.grad is not None]
    assert all(torch.isfinite(item).all() for item in gradients)
    assert any(item.abs().sum() > 0 for item in gradients)
    assert message == ""


@pytest.mark.parametrize("channels", [1, 3, 9])
@pytest.mark.parametrize(("name", "encoder"), QUICK.items())
def test_neighbouring_slices_may_be_channels(name: str, encoder: str, channels: int) -> None:
    network, _ = build(name, encoder=encoder, channels=channels, classes=2)
    with torch.inference_mode():
        assert network.eval()(torch.zeros(1, channels, 64, 64)).shape == (1, 2, 64, 64)


def test_the_finest_axes_are_pooled_first() -> None:
    strides, kernels = pooling((16, 128, 128), (5.0, 1.0, 1.0))
    assert strides == [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
    assert kernels == [[1, 3, 3], [1, 3, 3], *[[3, 3, 3]] * 4]
    assert pooling((64, 64), (1.0, 1.0))[0] == [[1, 1], *[[2, 2]] * 4]
    assert pooling((5, 32, 32), (1.0, 1.0, 1.0))[0][1:] == [[1, 2, 2]] * 3  # an odd axis is left alone


@pytest.mark.parametrize("name", ["plain-unet-3d", "unet-3d", "attention-unet-3d", "dynunet-3d"])
def test_volumes_with_few_slices_fit(name: str) -> None:
    patch = (8, 48, 32)
    arguments = network_arguments(name, encoder="plain-8", patch=patch, spacing=(4.0, 1.0, 1.0))
    assert find(name).multiple(arguments)[0] < find(name).multiple(arguments)[1]
    network, _ = build(name, encoder="plain-8", channels=1, classes=2, arguments=arguments)
    assert network(torch.zeros(2, 1, *patch)).shape == (2, 2, *patch)


@pytest.mark.parametrize("name", [name for name, item in ARCHITECTURES.items() if item.deep_supervision])
def test_deep_supervision_is_a_list_in_training_only(name: str) -> None:
    patch = (32,) * ARCHITECTURES[name].dimensions
    encoder = ARCHITECTURES[name].encoders[0]
    arguments = network_arguments(name, encoder=encoder, patch=patch, deep_supervision=True)
    network, _ = build(name, encoder=encoder, channels=1, classes=2, arguments=arguments)
    images = torch.randn(2, 1, *patch)
    found = network(images)
    assert [item.shape[-1] for item in found] == [32 // 2**level for level in range(len(found))]
    assert len(found) == max(2, int(math.log2(32 // 4)) - 1)
    sum(item.square().mean() for item in found).backward()
    copied = copy.deepcopy(network).eval()  # a training keeps an average of its weights in a copy
    assert copied(images).shape == (2, 2, *patch)


def test_unetr_wants_its_own_patch() -> None:
    with pytest.raises(ConfigError, match="multiples of 16"):
        network_arguments("unetr-3d", encoder="plain-8", patch=(24, 32, 32))
    arguments = network_arguments("unetr-3d", encoder="plain-8", patch=(16, 32, 48))
    assert find("unetr-3d").multiple(arguments) == (16, 32, 48)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="no-such-net"):
        build("no-such-net", encoder="resnet18", channels=1, classes=2)


def test_encoders_exist_and_are_listed() -> None:
    import timm
    from segmentation_models_pytorch.encoders import get_encoder_names

    known = {*get_encoder_names(), *(f"tu-{name}" for name in timm.list_models())}
    assert len(set(ENCODERS)) == len(ENCODERS)
    for architecture in ARCHITECTURES.values():
        assert set(architecture.encoders) <= set(ENCODERS)
        if not set(architecture.encoders) & set(ENCODER_GROUPS["From scratch"]):
            assert set(architecture.encoders) <= known


def test_listing_needs_no_torch() -> None:
    code = "import sys, ml_core.networks.catalogue; raise SystemExit('torch' in sys.modules or 'monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
