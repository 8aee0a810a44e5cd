"""Before the start: one real step and one real prediction, to say how much time and memory the training will take."""

from __future__ import annotations

import math
import resource
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ml_core.cases.patches import PatchSampler
from ml_core.cases.store import StoredCase
from ml_core.dataset.case import Case, label_indices
from ml_core.io import read_image, read_mask
from ml_core.measures.metrics import case_metrics
from ml_core.networks.device import autocast, memory_layout, pick_device
from ml_core.planning.plan import Plan
from ml_core.prediction.predictor import Predictor, network_of
from ml_core.prediction.runtimes import TorchForward
from ml_core.training.batches import BatchLoader
from ml_core.training.losses import make_loss
from ml_core.training.optimizers import make_optimizers
from ml_core.training.trainer import steps_of_an_epoch
from ml_core.training.validation import Validator

LEAST_SHARE = 0.3  # of the time left goes into learning, however long the evaluation takes
COPIES = 8  # of an image, when mirrored ones are predicted too
REFINING_SHARE = 0.05  # of the time budget may go into measuring what helps on the validation cases
EVALUATING_SHARE = 0.25  # of the time budget, at most: of very many held-out cases some are evaluated, spread evenly
FIXED_SECONDS = 3.0  # converting the networks, writing and checking the package
PASSES = 20  # over the validation cases: mirrored copies, comparisons of runtimes, post-processing


@dataclass(frozen=True)
class Estimate:
    """Measured before the start. seconds_a_case: predicting one held-out case; seconds_to_score: its metrics.

    reserve_seconds: what the work after the last step will take. peak_memory: bytes of the process, or of the GPU's memory.
    """

    seconds_a_step: float
    images_per_second: float
    seconds_a_case: float
    seconds_to_score: float
    reserve_seconds: float
    refining_seconds: float
    mirroring: bool
    peak_memory: int
    epochs: int | None
    seconds: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def end_of_training(self, budget: float | None, begun: float) -> tuple[float | None, str | None]:
        """When the last step has to be done (time.monotonic), so that what comes after fits into the budget; a sentence if that is soon."""
        if not budget:
            return None, None
        now = time.monotonic()
        left = begun + budget - now
        least = LEAST_SHARE * max(left, budget / 10)
        short = None
        if left - self.reserve_seconds < least:
            short = (
                f"A time budget of {budget:g} s is short for this data on this machine: preparing took {budget - left:.0f} s and the "
                f"evaluation takes about {self.reserve_seconds:.0f} s, so the training ended late and learnt little. Allow more time."
            )
        return now + max(least, left - self.reserve_seconds), short


def rehearse(
    plan: Plan, train: list[StoredCase], val: list[StoredCase], example: Case, *, n_test: int, n_val: int, members: int
) -> Estimate:
    """One step to warm up and one that is measured; then one case predicted and scored. Nothing of it is kept."""
    device = pick_device()
    network = network_of(plan).to(device).to(memory_format=memory_layout(len(plan.patch))).train()
    optimizers = make_optimizers(network, plan)
    loss_of = make_loss(plan.loss, class_weights=plan.balanced_weights or None).to(device)
    sampler = PatchSampler(train, plan)
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
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else _peak_of_process()

    image = read_image(example.image)
    reference = label_indices(read_mask(example.mask, like=image).values, plan.class_values, example.name)
    predictor = Predictor([TorchForward(network.eval(), plan.precision)], plan)
    predictor.predict(image)
    begun = time.perf_counter()
    predictor.predict(image)
    case = time.perf_counter() - begun
    begun = time.perf_counter()
    case_metrics(reference, np.roll(reference, 3, axis=-1), len(plan.class_values), image.spacing)
    score = time.perf_counter() - begun

    budget = plan.time_budget_seconds or math.inf
    refining = min(members * n_val * case * PASSES, REFINING_SHARE * budget)
    a_case = members * case + score
    once = min(n_test * a_case, max(a_case, EVALUATING_SHARE * budget))
    mirrored = n_test * (COPIES * members * case + score)
    mirroring = plan.test_time_augmentation == "on" or (
        plan.test_time_augmentation == "measured" and mirrored < REFINING_SHARE * budget
    )
    validator = Validator(val, plan, loss_of)
    # The last validation begins when the time for steps is over; nothing goes backwards in it, hence a third.
    validation = step / 3 * validator.pixels() / (plan.batch_size * math.prod(plan.patch))
    reserve = (mirrored if mirroring else once) + refining + members * (FIXED_SECONDS + validation)
    steps = steps_of_an_epoch(sampler.units(), validator.pixels(), plan)
    in_all = members * steps * plan.epochs * step + reserve if plan.epochs else None
    return Estimate(
        seconds_a_step=round(step, 4),
        images_per_second=round(plan.batch_size / step, 2),
        seconds_a_case=round(case, 3),
        seconds_to_score=round(score, 3),
        reserve_seconds=round(reserve, 1),
        refining_seconds=round(refining, 1),
        mirroring=mirroring,
        peak_memory=peak,
        epochs=plan.epochs or max(1, int((budget - reserve) / step / steps / members)),
        seconds=round(min(in_all or math.inf, budget), 1),
    )


def _peak_of_process() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
