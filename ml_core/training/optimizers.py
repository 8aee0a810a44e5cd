"""What moves the weights, and how far: AdamW, or Muon for the kernels and AdamW for all else; a learning rate that rises and falls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ml_core.planning.plan import Plan

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
STEPS_AVERAGED_EACH = 100  # at the start the average of the weights takes in every step,
STEPS_BETWEEN_AVERAGES = 4  # later every fourth


def make_optimizers(network: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """One or two, each with the plan's learning rate and weight decay. `network` must lie in memory channels last."""
    given: Any = {"lr": plan.learning_rate, "weight_decay": plan.weight_decay}
    if plan.optimizer != "muon":
        return [torch.optim.AdamW(network.parameters(), fused=True, **given)]
    kernels = list(_inner_kernels(network, len(plan.class_values)))
    known = {id(kernel) for kernel in kernels}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in known]
    return [torch.optim.AdamW(rest, fused=True, **given), *([KernelMuon(kernels, **given)] if kernels else [])]


def learning_rate(plan: Plan, step: int, fraction: float) -> float:
    """Linear warm-up over the first steps, then half a cosine down to a hundredth (Loshchilov 2017).

    step: from 0. fraction: of the training that is over, 0 to 1.
    """
    warm_up = min(1.0, (step + 1) / max(1, plan.warm_up_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * fraction))
    return plan.learning_rate * warm_up * (0.01 + 0.99 * cosine)


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def clip_gradients(network: nn.Module, most: float) -> None:
    """torch.nn.utils.clip_grad_norm_, which writes all gradients again even where they are short enough: half of its time."""
    parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if norm.device.type != "cpu" or not norm <= most:  # to look at it a GPU would have to be waited for; NaN stays NaN
        nn.utils.clip_grads_with_norm_(parameters, most, norm)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    """Exponential moving average of weights, following quickly at first; statistics of normalisation layers as well.

    Later only some steps are averaged: neighbours differ little, and each takes a hundredth of a step's time.
    """
    every = 1 if step <= STEPS_AVERAGED_EACH else STEPS_BETWEEN_AVERAGES
    if step % every:
        return
    keep = min(decay, (1 + step) / (10 + step)) ** every
    targets, sources = [], []
    for target, source in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if target.is_floating_point():
            targets.append(target)
            sources.append(source)
        else:
            target.copy_(source)
    torch._foreach_lerp_(targets, sources, 1 - keep)


class KernelMuon(torch.optim.Muon):
    """Muon (Jordan 2024) on kernels of convolutions, each seen as a matrix with a row per feature of its first axis.

    Each step is the momentum with its singular values brought near one, as long as AdamW's would be (Liu 2025, "Muon is scalable"),
    so that both share a learning rate. `kernels`: (features, channels, *window), channels last in memory.
    """

    def __init__(self, kernels: list[Tensor], *, lr: float, weight_decay: float) -> None:
        self._kernels = kernels
        matrices = [nn.Parameter(_matrix(kernel.detach())) for kernel in kernels]
        if any(one.data_ptr() != other.data_ptr() for one, other in zip(matrices, kernels, strict=True)):
            raise ValueError("Muon changes kernels in place: they must lie in memory channels last.")
        super().__init__(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        for kernel, matrix in zip(self._kernels, self.param_groups[0]["params"], strict=True):
            matrix.grad = None if kernel.grad is None else _matrix(kernel.grad)
        result = super().step(closure)  # type: ignore[no-untyped-call]  # torch does not type it
        self.zero_grad()  # else these gradients would be held in memory while the next ones are made
        return result


def _inner_kernels(network: nn.Module, classes: int) -> Iterator[Tensor]:
    """Those that turn features into features: not the first one's, which sees the image, and not those of the logits."""
    first = True
    for module in network.modules():
        if isinstance(module, CONVOLUTIONS):
            if not first and module.groups == 1 and module.out_channels != classes:
                yield module.weight
            first = False


def _matrix(kernel: Tensor) -> Tensor:
    """A kernel (features, channels, *window) as (features, window x channels), without a copy where channels lie last."""
    return kernel.permute(0, *range(2, kernel.ndim), 1).reshape(kernel.shape[0], -1)
