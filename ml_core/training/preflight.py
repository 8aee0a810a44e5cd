"""Checks before a training: whether it fits into memory and onto the disk, and how long it will take here."""

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

# Bytes that Python takes with PyTorch and an image reader.
BASE = 600 * 2**20
# Weights, gradients, Adam's two moments, the average of the weights, and the best weights so far.
COPIES_OF_WEIGHTS = 6
# The backward pass holds the stored activations and their gradients: this factor times the activations alone.
BACKWARD = 1.6
# The share of the free memory that a training may plan with.
SAFETY = 0.95
GIB = 2**30


def memory_needed(plan: Plan, batch_size: int) -> int | None:
    """Estimate the bytes that a training holds at its peak; None if the network cannot be run without data.

    The activations are counted in one forward pass on PyTorch's meta device, whose tensors have sizes but no content.
    """
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
    weight_storages = {tensor.untyped_storage()._cdata for tensor in network.state_dict().values()}
    bytes_of_two = sum(size for storage, size in kept.items() if storage not in weight_storages)
    share = 0.5 if plan.precision == "bf16" else 1.0
    return int(BASE + COPIES_OF_WEIGHTS * weights + batch_size * bytes_of_two / 2 * share * BACKWARD)


def fit_into_memory(plan: Plan, machine: Machine) -> tuple[Plan, str | None]:
    """Halve the batch until the training fits into memory. Returns the plan, and a sentence if the batch was lowered.

    Raises TrainingError if not even a batch of 2 fits.
    """
    free, batch = machine.memory * SAFETY, plan.batch_size
    need = memory_needed(plan, batch)
    while need is not None and need > free and batch > 2:
        batch = max(2, batch // 2)
        need = memory_needed(plan, batch)
    if need is not None and need > free:
        reason = (
            f"With a batch of {batch} the training needs about {need / GIB:.1f} GB of memory, and "
            f"{free / GIB:.1f} GB are free."
        )
        raise TrainingError(
            "too_little_memory", reason, "Choose smaller patches or a smaller encoder, or end other programs."
        )
    if batch == plan.batch_size:
        return plan, None
    text = f"The batch was lowered from {plan.batch_size} to {batch}, since {free / GIB:.1f} GB of memory are free."
    return lower_batch(plan, batch, text), text


def lower_batch(plan: Plan, batch: int, reason: str) -> Plan:
    """The plan with another batch size, and the reason for it."""
    return replace(plan, batch_size=batch, reasons={**plan.reasons, "batch_size": reason})


def check_disk(plan: Plan, cases: list[Case], folder: Path, store: Path) -> None:
    """Raise TrainingError if the decoded samples and the checkpoints do not fit onto the disk."""
    voxels = math.prod(shape_on_grid(plan.fingerprint, plan.preprocessing))
    new = sum(not stored_stem(store, case, plan).with_suffix(".places.npy").exists() for case in cases)
    samples = int(new * voxels * (2 * plan.preprocessing.channels + 1))
    with torch.device("meta"):
        weights = sum(tensor.nbytes for tensor in network_of(plan).state_dict().values())
    # For each network, `latest` holds four copies of the weights, `best` and the package one each.
    need = samples + plan.folds * plan.seeds * 6 * weights
    free = min(shutil.disk_usage(place).free for place in (folder, store))
    if need > free:
        reason = (
            f"The training needs about {need / GIB:.1f} GB on the disk for decoded samples and checkpoints, and "
            f"{free / GIB:.1f} GB are free."
        )
        raise TrainingError("too_little_disk", reason, "Make room on the disk of MEDSEG_DATA_DIR and resume.")


def rehearse(
    plan: Plan, train: list[StoredCase], val: list[StoredCase], example: Case, *, n_test: int, n_val: int, networks: int
) -> Estimate:
    """Estimate the time and memory of a training, by taking two real steps and predicting `example`.

    The network that is trained for this is thrown away. n_test: the number of held-out cases. n_val: the number of
    validation cases of one network. networks: how many networks will be trained.
    """
    device = pick_device()
    network = network_of(plan).to(device).to(memory_format=memory_layout(len(plan.patch))).train()
    loss_of = make_loss(
        plan.loss, class_weights=plan.balanced_weights or None, ignores=bool(plan.fingerprint.ignored)
    ).to(device)
    sampler, validator = PatchSampler(train, plan), Validator(val, plan, loss_of)
    step_seconds = _seconds_a_step(network, sampler, plan, loss_of, device)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else _peak_of_process()
    case_seconds, score_seconds = _seconds_a_case(network, plan, example)
    pixels = validator.pixels()
    work = Work(
        networks=networks,
        steps=steps_of_an_epoch(sampler.units(), pixels, plan),
        validation_pixels=pixels,
        validation_cases=n_val,
        held_out_cases=n_test,
    )
    return make_estimate(plan, Measured(step_seconds, case_seconds, score_seconds, peak), work)


def _seconds_a_step(
    network: nn.Module, sampler: PatchSampler, plan: Plan, loss_of: nn.Module, device: torch.device
) -> float:
    """The seconds of the second training step. The first one is slower, because caches are filled."""
    optimizers, seconds = make_optimizers(network, plan), 0.0
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
            seconds = time.perf_counter() - begun
    return seconds


def _seconds_a_case(network: nn.Module, plan: Plan, case: Case) -> tuple[float, float]:
    """The seconds that the second prediction of a case takes, and those that its metrics take."""
    image = read_image(case.image)
    reference = case.indices(read_mask(case.mask, like=image), plan.class_values, plan.fingerprint.ignored)
    predictor = Predictor([TorchForward(network.eval(), plan.precision)], plan)
    predictor.predict(image)
    prediction = _seconds(lambda: predictor.predict(image))
    shifted = np.roll(reference, 3, axis=-1)
    return prediction, _seconds(lambda: case_metrics(reference, shifted, len(plan.class_values), image.spacing))


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _peak_of_process() -> int:
    """The largest memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
