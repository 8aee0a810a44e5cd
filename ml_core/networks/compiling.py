"""Compile a network for this machine before the first step of a training."""

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
    """Return the function that runs `network` in training, and None or a sentence that says why it is not compiled.

    If compiling fails, the function is the network itself. `network` must be on `device` in its memory layout. It is
    not changed: the compiled code uses its weights and buffers. PyTorch compiles at the first use, so a batch of zeros
    of `shape` (B, C, *patch) goes forward and backward here, before the training measures its time. Raises RuntimeError
    if memory runs out.
    """
    forward: Forward = torch.compile(network, dynamic=False)
    # The batch of zeros changes the statistics of normalisation layers, so they are restored afterwards.
    buffers = [buffer.clone() for buffer in network.buffers()]
    images = torch.zeros(*shape, device=device).contiguous(memory_format=memory_layout(len(shape) - 2))
    labels = torch.zeros(shape[0], *shape[2:], dtype=torch.long, device=device)
    failed = None
    network.train()
    try:
        with autocast(device, precision):
            logits = forward(images)
        loss_of(logits, labels).backward()  # type: ignore[no-untyped-call]  # torch does not type it
    # The errors of torch's compiler, and of the tools that it calls, are RuntimeErrors.
    except RuntimeError as error:
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
