"""A compiled network learns what the same network learns uncompiled; a machine that cannot compile trains all the same."""

from __future__ import annotations

import copy
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ml_core.networks.compiling import Forward, compile_forward
from tests.ml_core.planning.test_rules import GPU, LAPTOP, plan

CPU = torch.device("cpu")
SHAPE = (2, 1, 32, 32)
CAN_COMPILE = shutil.which("g++") is not None and Path(sysconfig.get_path("include"), "Python.h").exists()


def small_network() -> nn.Module:
    torch.manual_seed(0)
    first = nn.Conv2d(1, 8, 3, padding=1, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)).to(memory_format=torch.channels_last)


def losses(network: nn.Module, forward: Forward, steps: int = 5) -> list[float]:
    generator, optimizer = torch.Generator().manual_seed(1), torch.optim.SGD(network.parameters(), lr=0.1)
    found = []
    for _ in range(steps):
        images = torch.randn(2, 1, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
        loss = cross_entropy(forward(images), (images[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.slow
@pytest.mark.skipif(
    not CAN_COMPILE, reason="PyTorch compiles for a CPU with g++ and Python.h, and one of them is not here"
)
def test_the_compiled_network_is_the_network() -> None:
    plain, network = small_network(), small_network()
    before = copy.deepcopy(network.state_dict())
    forward, message = compile_forward(network, SHAPE, "fp32", cross_entropy, CPU)
    assert message is None
    assert forward is not network
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())  # BatchNorm's as well
    assert losses(network, forward) == pytest.approx(losses(plain, plain), rel=1e-4)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
def test_a_machine_that_cannot_compile_trains_the_network_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()  # else it may remember code of the test before
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    network = small_network()
    forward, message = compile_forward(network, SHAPE, "fp32", cross_entropy, CPU)
    assert forward is network
    assert message is not None
    assert message.startswith("The network could not be compiled on this machine (")
    assert losses(network, forward) == losses(plain := small_network(), plain)


def test_memory_that_runs_out_while_compiling_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(network: nn.Module, **_: object) -> Forward:
        def forward(images: Tensor) -> Tensor:
            raise RuntimeError("CUDA out of memory.")

        return forward

    monkeypatch.setattr(torch, "compile", full)
    with pytest.raises(RuntimeError, match="out of memory"):
        compile_forward(small_network(), SHAPE, "fp32", cross_entropy, CPU)


def test_only_long_trainings_on_a_gpu_are_compiled_unless_somebody_wants_it() -> None:
    assert plan(GPU, time_budget_seconds=600).torch_compile == "on"
    assert plan(GPU, time_budget_seconds=120).torch_compile == "off"
    assert plan(LAPTOP, time_budget_seconds=6000).torch_compile == "off"
    assert plan(LAPTOP, torch_compile="on").torch_compile == "on"
