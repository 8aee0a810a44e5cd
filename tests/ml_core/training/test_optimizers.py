"""Muon moves the inner kernels by orthogonal steps, AdamW all else; a checkpoint holds what both remember."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ml_core.errors import TrainingError
from ml_core.planning.plan import Plan
from ml_core.prediction.predictor import network_of
from ml_core.training.optimizers import (
    KernelMuon,
    clip_gradients,
    learning_rate,
    make_optimizers,
    set_learning_rate,
    update_average,
)
from ml_core.training.state import pack, unpack
from tests.ml_core.planning.test_rules import plan

RATE = 0.01


def network_and_plan(optimizer: str) -> tuple[nn.Module, Plan]:
    made = plan(optimizer=optimizer, patch_size=64, learning_rate=RATE, weight_decay=0.0)
    torch.manual_seed(0)
    return network_of(made).to(memory_format=torch.channels_last).train(), made


def step(network: nn.Module, optimizers: list[torch.optim.Optimizer], seed: int = 0) -> None:
    torch.manual_seed(seed)
    found: Tensor = network(torch.randn(2, 1, 64, 64))
    (found**2).mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    network.zero_grad(set_to_none=True)


def test_a_step_is_orthogonal_and_as_long_as_one_of_adamw() -> None:
    kernel = nn.Parameter(torch.randn(16, 8, 3, 3).to(memory_format=torch.channels_last))
    before = kernel.detach().clone()
    optimizer = KernelMuon([kernel], lr=RATE, weight_decay=0.0)
    kernel.grad = torch.randn(16, 8, 3, 3)
    optimizer.step()
    moved = (before - kernel.detach()).flatten(1) / RATE
    stretched = torch.linalg.svdvals(moved) / (0.2 * 72**0.5)
    assert stretched.min() > 0.6
    assert stretched.max() < 1.3
    assert torch.dot(moved.flatten(), kernel.grad.flatten()) > 0  # downhill


def test_the_first_kernel_and_those_of_the_logits_stay_with_adamw() -> None:
    network, made = network_and_plan("muon")
    adamw, muon = make_optimizers(network, made)
    moved = {matrix.data_ptr() for matrix in muon.param_groups[0]["params"]}
    kernels = [name for name, value in network.named_parameters() if value.ndim == 4]
    left = [name for name in kernels if network.get_parameter(name).data_ptr() not in moved]
    assert left == [kernels[0], "heads.0.weight"]
    together = [value for one in (adamw, muon) for value in one.param_groups[0]["params"]]
    assert sum(value.numel() for value in together) == sum(value.numel() for value in network.parameters())


def test_both_follow_one_learning_rate() -> None:
    network, made = network_and_plan("muon")
    optimizers = make_optimizers(network, made)
    before = [value.detach().clone() for value in network.parameters()]
    set_learning_rate(optimizers, 0.0)
    step(network, optimizers)
    assert all(torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))
    set_learning_rate(optimizers, RATE)
    step(network, optimizers)
    assert not any(torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_checkpoint_goes_on_as_if_nothing_had_happened(optimizer: str) -> None:
    network, made = network_and_plan(optimizer)
    optimizers = make_optimizers(network, made)
    step(network, optimizers, seed=1)
    tensors = {name: value.detach().clone() for name, value in pack(network, network, optimizers).items()}
    step(network, optimizers, seed=2)

    other, _ = network_and_plan(optimizer)
    again = make_optimizers(other, made)
    unpack(tensors, other, network_of(made), again)
    step(other, again, seed=2)
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_a_checkpoint_of_another_optimizer_is_refused() -> None:
    network, made = network_and_plan("muon")
    optimizers = make_optimizers(network, made)
    step(network, optimizers)
    tensors = pack(network, network, optimizers)
    other = make_optimizers(network, replace(made, optimizer="adamw"))
    with pytest.raises(TrainingError, match="does not fit"):
        unpack(tensors, network, network_of(made), other)


def test_kernels_in_another_layout_are_refused() -> None:
    with pytest.raises(ValueError, match="channels last"):
        KernelMuon([nn.Parameter(torch.randn(4, 8, 3, 3))], lr=RATE, weight_decay=0.0)


@pytest.mark.parametrize("scale", [0.01, 100.0, float("nan")])
def test_gradients_are_clipped_as_by_torch(scale: float) -> None:
    torch.manual_seed(0)
    ours, theirs, unused = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(2, 2)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        one.grad = torch.randn_like(one) * scale
        other.grad = one.grad.clone()
    clip_gradients(nn.ModuleList([ours, unused]), 5.0)
    nn.utils.clip_grad_norm_(theirs.parameters(), 5.0)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0, equal_nan=True)


def test_the_average_of_every_fourth_step_is_near_that_of_all() -> None:
    average, exact, network = (nn.Linear(1, 1, bias=False) for _ in range(3))
    for one in (average, exact):
        nn.init.zeros_(one.weight)
    followed = []
    for step in range(1, 1201):
        with torch.no_grad():
            network.weight.fill_(step / 1000 + (step % 7 - 3) / 10)  # it moves on, and shakes
            exact.weight.lerp_(network.weight, 1 - min(0.99, (1 + step) / (10 + step)))
        update_average(average, network, step, 0.99)
        followed.append(abs(float(average.weight.detach() - exact.weight.detach())))
    assert max(followed[:100]) < 1e-6  # there each counts
    assert max(followed[900:]) < 0.02  # of a shaking by 0.6


def test_the_learning_rate_rises_falls_and_ends_low() -> None:
    made = plan(warm_up_steps=20)
    highest = made.learning_rate
    assert learning_rate(made, 0, 0.0) == pytest.approx(highest / 20)
    assert learning_rate(made, 19, 0.0) == pytest.approx(highest)
    assert learning_rate(made, 500, 0.5) == pytest.approx(highest * (0.01 + 0.99 / 2))
    assert learning_rate(made, 1500, 1.0) == pytest.approx(highest / 100)
