"""Before anything is decoded: does the training fit into memory and onto the disk? A smaller batch, or a refusal with the numbers."""

from __future__ import annotations

import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ml_core.cases.store import stored_stem
from ml_core.dataset.case import Case
from ml_core.errors import TrainingError
from ml_core.planning.grid import shape_on_grid
from ml_core.planning.plan import Machine, Plan
from ml_core.prediction.predictor import network_of

log = logging.getLogger(__name__)

BASE = 600 * 2**20  # bytes of Python with PyTorch and a reader of images
COPIES_OF_WEIGHTS = 6  # weights, gradients, Adam's two moments, the average, the best so far
BACKWARD = 1.6  # what is kept for the way back, and the gradients on that way
SAFETY = 0.95  # of the memory that is free
GIB = 2**30


def memory_needed(plan: Plan, batch_size: int) -> int | None:
    """Bytes that the training will hold at its peak, from one pass over tensors without content; None where that is no way."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    try:
        with torch.device("meta"):
            network = network_of(plan).train()
            images = torch.zeros(2, plan.in_channels, *plan.patch)
            with saved_tensors_hooks(pack, lambda tensor: tensor):
                logits = network(images)
    except (RuntimeError, NotImplementedError) as error:
        log.info("no estimate of memory for %s: %s", plan.architecture, error)
        return None
    del logits
    weights = sum(tensor.nbytes for tensor in network.state_dict().values())
    own = {tensor.untyped_storage()._cdata for tensor in network.state_dict().values()}
    of_two = sum(size for storage, size in kept.items() if storage not in own)
    share = 0.5 if plan.precision == "bf16" else 1.0
    return int(BASE + COPIES_OF_WEIGHTS * weights + batch_size * of_two / 2 * share * BACKWARD)


def fit_into_memory(plan: Plan, machine: Machine) -> tuple[Plan, str | None]:
    """The plan, with a smaller batch where it must be, and then a sentence. Raises TrainingError where no batch fits."""
    free, batch = machine.memory * SAFETY, plan.batch_size
    need = memory_needed(plan, batch)
    while need is not None and need > free and batch > 2:
        batch = max(2, batch // 2)
        need = memory_needed(plan, batch)
    if need is not None and need > free:
        reason = (
            f"With a batch of {batch} it needs about {need / GIB:.1f} GB of memory, and {free / GIB:.1f} GB are free."
        )
        raise TrainingError(
            "too_little_memory", reason, "Choose smaller patches or a smaller encoder, or end other programs."
        )
    if batch == plan.batch_size:
        return plan, None
    text = f"The batch was lowered from {plan.batch_size} to {batch}, since {free / GIB:.1f} GB of memory are free."
    return lower_batch(plan, batch, text), text


def lower_batch(plan: Plan, batch: int, reason: str) -> Plan:
    return replace(plan, batch_size=batch, reasons={**plan.reasons, "batch_size": reason})


def check_disk(plan: Plan, cases: list[Case], folder: Path, store: Path) -> None:
    """Raises TrainingError when decoded samples and checkpoints do not fit onto the disk."""
    voxels = math.prod(shape_on_grid(plan.fingerprint, plan.preprocessing))
    new = sum(not stored_stem(store, case, plan).with_suffix(".places.npy").exists() for case in cases)
    samples = int(new * voxels * (2 * plan.preprocessing.channels + 1))
    with torch.device("meta"):
        weights = sum(tensor.nbytes for tensor in network_of(plan).state_dict().values())
    need = samples + plan.folds * plan.seeds * 6 * weights  # latest (4), best, package
    free = min(shutil.disk_usage(place).free for place in (folder, store))
    if need > free:
        reason = f"It needs about {need / GIB:.1f} GB on the disk for decoded samples and checkpoints, and {free / GIB:.1f} GB are free."
        raise TrainingError("too_little_disk", reason, "Make room on the disk of MEDSEG_DATA_DIR and resume.")
