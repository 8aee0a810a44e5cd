"""A converted network gives PyTorch's results, for every size, and is refused where it does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from ml_core.networks.catalogue import build
from ml_core.prediction.runtimes import (
    MAX_DIFFERENCE,
    NotConvertibleError,
    OpenVinoForward,
    TorchForward,
    choose,
    convert,
)
from tests.environment import REPOSITORY
from tests.synthetic import draw_pair

RNG = np.random.default_rng(0)


def unet_2d() -> nn.Module:
    torch.manual_seed(0)
    return build("unet", encoder="mobilenet_v2", channels=1, classes=3)[0].eval()


def unet_3d() -> nn.Module:
    torch.manual_seed(0)
    return UNet(3, 2, 4, channels=(4, 8, 16), strides=(2, 2), num_res_units=1).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "channels", "sizes"),
    [(unet_2d(), 1, [(64, 64), (96, 160)]), (unet_3d(), 2, [(16, 16, 16), (32, 16, 24)])],
    ids=["2D", "3D"],
)
def test_a_converted_network_gives_the_same_logits_for_every_size(
    network: nn.Module, channels: int, sizes: list[tuple[int, ...]]
) -> None:
    fast = OpenVinoForward(*convert(network, torch.zeros(1, channels, *sizes[0])), "fp32")
    for size in sizes:
        for count in (1, 3):
            batch = RNG.normal(size=(count, channels, *size)).astype(np.float32)
            with torch.no_grad():
                expected = network(torch.from_numpy(batch)).numpy()
            for forward in (fast, TorchForward(network, "fp32")):
                found = forward(batch)
                assert found.dtype == np.float32
                assert found.flags.c_contiguous
                np.testing.assert_allclose(found, expected, atol=0.005 * np.abs(expected).max())


@pytest.mark.slow
def test_bf16_is_close_and_both_keep_earlier_results() -> None:
    network = unet_2d()
    batches = [RNG.normal(size=(2, 1, 64, 64)).astype(np.float32) for _ in range(2)]
    exact = TorchForward(network, "fp32")
    expected = [exact(batch) for batch in batches]
    for forward in (
        TorchForward(network, "bf16"),
        OpenVinoForward(*convert(network, torch.zeros(1, 1, 64, 64)), "bf16"),
    ):
        found = [forward(batch) for batch in batches]
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=0.1 * np.abs(theirs).max())


class Frozen(nn.Module):
    """Pools to a size that tracing writes down as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        size = [int(length) // 2 for length in images.shape[2:]]
        pooled = nn.functional.interpolate(self.conv(images), size=size)
        result: Tensor = nn.functional.interpolate(pooled, size=[2 * length for length in size])
        return result


def test_a_network_that_tracing_freezes_is_refused_or_kept_for_one_size() -> None:
    with pytest.raises(NotConvertibleError, match="64 x 32"):
        convert(Frozen(), torch.zeros(1, 1, 32, 32))
    fast = OpenVinoForward(*convert(Frozen(), torch.zeros(1, 1, 32, 32), any_size=False), "fp32")
    assert fast(np.zeros((3, 1, 32, 32), np.float32)).shape == (3, 2, 32, 32)


def test_the_decision_is_by_dice_per_class_against_the_reference() -> None:
    cases = [draw_pair(np.random.default_rng(seed), 64, 3) for seed in range(3)]
    truth = {image.tobytes(): labels for image, labels in cases}

    def exact(image: Any) -> Any:
        return truth[image.tobytes()]

    def nearly(image: Any) -> Any:
        found = exact(image).copy()
        found[0, 0] = 1 - found[0, 0]
        return found

    same = choose(exact, exact, iter(cases), 3)
    assert (same.runtime, same.precision, same.dice_difference, same.cases) == ("openvino", "bf16", 0.0, 3)
    assert same.reason.startswith("OpenVINO in bf16")
    refused = choose(nearly, exact, iter(cases), 3)
    assert (refused.runtime, refused.precision) == ("torch", "fp32")
    sizes = [(labels == 1).sum() for _, labels in cases]
    assert refused.dice_difference == pytest.approx(np.mean([1 - 2 * n / (2 * n + 1) for n in sizes]))
    assert (refused.dice_difference or 0.0) >= MAX_DIFFERENCE
    assert choose(exact, exact, iter([]), 3).runtime == "torch"


@pytest.mark.slow
def test_openvino_runs_without_torch_and_reports_to_nobody(tmp_path: Path) -> None:
    xml, weights = convert(unet_2d(), torch.zeros(1, 1, 64, 64))
    (tmp_path / "xml").write_bytes(xml)
    (tmp_path / "bin").write_bytes(weights)
    code = """
import os, socket, sys
from pathlib import Path
def refuse(*arguments, **more): raise SystemExit("a socket was opened")
socket.socket = refuse
import numpy as np
from ml_core.prediction.runtimes import OpenVinoForward
forward = OpenVinoForward(Path(sys.argv[1], "xml").read_bytes(), Path(sys.argv[1], "bin").read_bytes(), "bf16")
assert forward(np.zeros((1, 1, 64, 64), np.float32)).shape == (1, 3, 64, 64)
assert "torch" not in sys.modules
from openvino.tools.ovc import telemetry
assert type(telemetry).__module__ == "openvino.tools.ovc.telemetry_stub", type(telemetry)
"""
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=REPOSITORY,
        env={"HOME": str(home), "PATH": ""},
        check=True,
    )
    assert list(home.iterdir()) == []
