"""How a step changes the weights: the optimizers, the learning rate, the clipping of gradients and the average of
weights.

The optimizer is AdamW for all weights, or Muon for the kernels of convolutions and AdamW for the other weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ml_core.planning.plan import Plan

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# The average of the weights includes each of the first steps, because they change the weights most.
STEPS_AVERAGED_EACH = 100
# After that it includes every fourth step.
STEPS_BETWEEN_AVERAGES = 4


def make_optimizers(network: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Make one or two optimizers, each with the plan's learning rate and weight decay.

    `network` must lie in memory channels last. Raises ValueError if it does not and the plan asks for Muon.
    """
    settings: Any = {"lr": plan.learning_rate, "weight_decay": plan.weight_decay}
    if plan.optimizer != "muon":
        return [torch.optim.AdamW(network.parameters(), fused=True, **settings)]
    kernels = list(_inner_kernels(network, len(plan.class_values)))
    kernel_ids = {id(kernel) for kernel in kernels}
    others = [parameter for parameter in network.parameters() if id(parameter) not in kernel_ids]
    return [torch.optim.AdamW(others, fused=True, **settings), *([KernelMuon(kernels, **settings)] if kernels else [])]


def learning_rate(plan: Plan, step: int, fraction: float) -> float:
    """The learning rate of a step: a linear warm-up, then half a cosine down to a hundredth (Loshchilov 2017).

    step: the number of the step, from 0. fraction: the part of the training that is over, 0 to 1.
    """
    warm_up = min(1.0, (step + 1) / max(1, plan.warm_up_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * fraction))
    return plan.learning_rate * warm_up * (0.01 + 0.99 * cosine)


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Set the learning rate of all parameters."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def clip_gradients(network: nn.Module, most: float) -> None:
    """Scale the gradients down so that their total norm is at most `most`.

    torch.nn.utils.clip_grad_norm_ does the same, but spends half of its time rewriting gradients that are short enough.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    # A norm on a GPU is not compared, because that would wait for the GPU. With `not <=` NaN is not skipped.
    if norm.device.type != "cpu" or not norm <= most:
        nn.utils.clip_grads_with_norm_(parameters, most, norm)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    """Move `average` towards the weights of `network`: an exponential moving average with the decay per step `decay`.

    The decay is lower in the first steps, so that the random weights of the start are soon forgotten. Statistics of
    normalisation layers are averaged as well. Later only every fourth step is averaged: neighbouring steps differ
    little, and averaging takes a hundredth of a step's time. step: the number of the step, from 1.
    """
    interval = 1 if step <= STEPS_AVERAGED_EACH else STEPS_BETWEEN_AVERAGES
    if step % interval:
        return
    kept_share = min(decay, (1 + step) / (10 + step)) ** interval
    targets, sources = [], []
    for target, source in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if target.is_floating_point():
            targets.append(target)
            sources.append(source)
        else:
            target.copy_(source)
    torch._foreach_lerp_(targets, sources, 1 - kept_share)


class KernelMuon(torch.optim.Muon):
    """Muon (Jordan 2024) for kernels of convolutions, each taken as a matrix with one row per feature of its first
    axis.

    Each step is the momentum, with its singular values brought near one and with the length that AdamW's step would
    have (Liu 2025, "Muon is scalable"), so that both optimizers share a learning rate. kernels: (features, channels,
    *window), channels last in memory; other layouts raise ValueError.
    """

    def __init__(self, kernels: list[Tensor], *, lr: float, weight_decay: float) -> None:
        self._kernels = kernels
        matrices = [nn.Parameter(_matrix(kernel.detach())) for kernel in kernels]
        if any(matrix.data_ptr() != kernel.data_ptr() for matrix, kernel in zip(matrices, kernels, strict=True)):
            raise ValueError("Muon changes kernels in place: they must lie in memory channels last.")
        super().__init__(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with the gradients of the kernels."""
        for kernel, matrix in zip(self._kernels, self.param_groups[0]["params"], strict=True):
            matrix.grad = None if kernel.grad is None else _matrix(kernel.grad)
        # PyTorch has no types for this.
        result = super().step(closure)  # type: ignore[no-untyped-call]
        # Otherwise these gradients would stay in memory while the next ones are computed.
        self.zero_grad()
        return result


def _inner_kernels(network: nn.Module, classes: int) -> Iterator[Tensor]:
    """The kernels from features to features, so neither that of the first layer, which sees the image, nor the last."""
    first = True
    for module in network.modules():
        if isinstance(module, CONVOLUTIONS):
            if not first and module.groups == 1 and module.out_channels != classes:
                yield module.weight
            first = False


def _matrix(kernel: Tensor) -> Tensor:
    """Reshape a kernel (features, channels, *window) to (features, window x channels); a view if channels lie last."""
    return kernel.permute(0, *range(2, kernel.ndim), 1).reshape(kernel.shape[0], -1)
