"""A network turned into code for this machine before its first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ml_core.errors import is_out_of_memory
from ml_core.networks.device import autocast, memory_layout

Forward = Callable[[Tensor], Any]


def compile_forward(
    network: nn.Module,
    shape: Sequence[int],
    precision: str,
    loss_of: Callable[[Any, Tensor], Tensor],
    device: torch.device,
) -> tuple[Forward, str | None]:
    """How to call `network` in training, and a sentence where it could not be compiled and is called as it is.

    `network` (in its layout, on `device`) stays the same: its weights and buffers are what the compiled code works with. PyTorch
    compiles at the first use, so a batch of nothing of `shape` (B, C, *patch) goes forward and backward here, outside of what the
    training measures. Raises RuntimeError where memory runs out.
    """
    forward: Forward = torch.compile(network, dynamic=False)
    buffers = [buffer.clone() for buffer in network.buffers()]  # statistics of normalisation layers
    images = torch.zeros(*shape, device=device).contiguous(memory_format=memory_layout(len(shape) - 2))
    labels = torch.zeros(shape[0], *shape[2:], dtype=torch.long, device=device)
    failed = None
    network.train()
    try:
        with autocast(device, precision):
            logits = forward(images)
        loss_of(logits, labels).backward()  # type: ignore[no-untyped-call]  # torch does not type it
    except RuntimeError as error:  # torch's own errors of compiling, and of what it calls for it
        if is_out_of_memory(error):
            raise
        words = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        failed = f"The network could not be compiled on this machine ({words}), so it was trained as it is."
        forward = network
    network.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return forward, failed
