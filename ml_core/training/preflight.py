"""Before a training: does it fit into memory and onto the disk, and how long do a step and a prediction take on this machine?"""

from __future__ import annotations

import logging
import math
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ml_core.cases.patches import PatchSampler
from ml_core.cases.store import StoredCase, stored_stem
from ml_core.dataset.case import Case
from ml_core.errors import TrainingError
from ml_core.io import read_image, read_mask
from ml_core.measures.metrics import case_metrics
from ml_core.networks.device import autocast, memory_layout, pick_device
from ml_core.planning.budget import Estimate, Measured, Work, make_estimate, steps_of_an_epoch
from ml_core.planning.grid import shape_on_grid
from ml_core.planning.plan import Machine, Plan
from ml_core.prediction.predictor import Predictor, network_of
from ml_core.prediction.runtimes import TorchForward
from ml_core.training.batches import BatchLoader
from ml_core.training.losses import make_loss
from ml_core.training.optimizers import make_optimizers
from ml_core.training.validation import Validator

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


def rehearse(
    plan: Plan, train: list[StoredCase], val: list[StoredCase], example: Case, *, n_test: int, n_val: int, networks: int
) -> Estimate:
    """What a training will take, from real steps and a prediction of `example`. Nothing of them is kept.

    `n_test`: held-out cases in all, `n_val`: cases to validate a network on.
    """
    device = pick_device()
    network = network_of(plan).to(device).to(memory_format=memory_layout(len(plan.patch))).train()
    loss_of = make_loss(
        plan.loss, class_weights=plan.balanced_weights or None, ignores=bool(plan.fingerprint.ignored)
    ).to(device)
    sampler, validator = PatchSampler(train, plan), Validator(val, plan, loss_of)
    step = _seconds_a_step(network, sampler, plan, loss_of, device)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else _peak_of_process()
    case, score = _seconds_a_case(network, plan, example)
    pixels = validator.pixels()
    work = Work(
        networks=networks,
        steps=steps_of_an_epoch(sampler.units(), pixels, plan),
        validation_pixels=pixels,
        validation_cases=n_val,
        held_out_cases=n_test,
    )
    return make_estimate(plan, Measured(step, case, score, peak), work)


def _seconds_a_step(
    network: nn.Module, sampler: PatchSampler, plan: Plan, loss_of: nn.Module, device: torch.device
) -> float:
    """Of the second step; the first one warms up."""
    optimizers, step = make_optimizers(network, plan), 0.0
    with BatchLoader(sampler, plan, device, first_step=0) as batches:
        for _ in range(2):
            images, labels = batches.next()
            begun = time.perf_counter()
            with autocast(device, plan.precision):
                logits = network(images)
            loss_of(logits, labels).backward()
            for optimizer in optimizers:
                optimizer.step()
            network.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            step = time.perf_counter() - begun
    return step


def _seconds_a_case(network: nn.Module, plan: Plan, case: Case) -> tuple[float, float]:
    """To predict it, the second time; and to compute its metrics."""
    image = read_image(case.image)
    reference = case.indices(read_mask(case.mask, like=image), plan.class_values, plan.fingerprint.ignored)
    predictor = Predictor([TorchForward(network.eval(), plan.precision)], plan)
    predictor.predict(image)
    prediction = _seconds(lambda: predictor.predict(image))
    beside = np.roll(reference, 3, axis=-1)
    return prediction, _seconds(lambda: case_metrics(reference, beside, len(plan.class_values), image.spacing))


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _peak_of_process() -> int:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
