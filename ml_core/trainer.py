"""The training loop, top to bottom."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ml_core.architectures import build
from ml_core.augmentation import PRESETS, augment
from ml_core.checkpoint import load_weights, pack, save_weights, unpack
from ml_core.data import PatchSampler, StoredCase
from ml_core.errors import TrainingError
from ml_core.losses import make_loss
from ml_core.metrics import overlap_metrics
from ml_core.planning import Plan
from ml_core.predictor import autocast, forward_slices, pick_device

WARM_UP_STEPS = 20
WEIGHT_DECAY = 1e-4
AVERAGE_DECAY = 0.99
CLIP_NORM = 5.0
STEPS_AN_EPOCH = (8, 40)
VALIDATION_SLICES = 32
SECONDS_BETWEEN_PROGRESS = 0.5


@dataclass
class TrainResult:
    """`network` holds the best weights (None when stopped before the first epoch ended)."""

    network: nn.Module | None
    epochs: int
    best_epoch: int
    stopped: bool
    warnings: list[str] = field(default_factory=list)


def fit(
    plan: Plan,
    train: list[StoredCase],
    val: list[StoredCase],
    folder: Path,
    *,
    on_event: Callable[[dict[str, Any]], None],
    should_stop: Callable[[], bool],
    deadline: float | None = None,
) -> TrainResult:
    """Train until the epochs are done, the deadline (time.monotonic) is near, patience ends or `should_stop` says so.

    Writes latest.safetensors (everything, to go on from) and best.safetensors (averaged weights of the best validation
    Dice) to `folder` after every epoch, and goes on from latest where it is there already.
    """
    torch.manual_seed(plan.seed)
    rng, generator = np.random.default_rng(plan.seed), torch.Generator().manual_seed(plan.seed)
    device, warnings = pick_device(), []
    network, message = build(
        plan.architecture,
        encoder=plan.encoder,
        channels=plan.preprocessing.channels,
        classes=len(plan.class_values),
        encoder_weights=plan.encoder_weights,
    )
    if message:
        warnings.append(message)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network).eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=WEIGHT_DECAY, foreach=True)
    loss_of, preset = make_loss(plan.loss), PRESETS[plan.augmentation]
    sampler = PatchSampler(train, plan, rng)
    steps = min(max(math.ceil(sampler.units() / plan.batch_size), STEPS_AN_EPOCH[0]), STEPS_AN_EPOCH[1])

    latest, best = folder / "latest.safetensors", folder / "best.safetensors"
    epoch, step, best_score, best_epoch, spent = 0, 0, -math.inf, 0, 0.0
    if latest.exists():
        tensors, facts = load_weights(latest)
        unpack(tensors, facts, network, average, optimizer, rng, generator)
        epoch, step, spent = facts["epoch"], facts["step"], facts["seconds"]
        best_score, best_epoch = facts["best_score"], facts["best_epoch"]
        if deadline is not None:
            deadline -= spent  # the time used before the interruption counts
    on_event({"type": "start", "epoch": epoch})
    start = time.monotonic() - spent
    clock = _Clock(plan, start, deadline, epoch * steps)
    stopped, reported = False, 0.0

    while not clock.is_over(epoch) and not stopped:
        network.train()
        epoch_start, losses = time.monotonic(), []
        for index in range(steps):
            rate = clock.learning_rate(step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            images, labels = (torch.from_numpy(array).to(device) for array in sampler.batch())
            images, labels = augment(images, labels, preset, generator)
            images = images.contiguous(memory_format=torch.channels_last)
            with autocast(device, plan.precision):
                logits = network(images)
            loss = loss_of(logits, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
            optimizer.step()
            step += 1
            update_average(average, network, step)
            losses.append(loss.detach())
            now = time.monotonic()
            clock.measure(now, step)
            if now - reported > SECONDS_BETWEEN_PROGRESS:
                reported = now
                speed = (index + 1) * plan.batch_size / (now - epoch_start)
                on_event(clock.progress(epoch, step, steps, train_loss=float(losses[-1]), images_per_second=speed))
            if should_stop() or clock.is_late(now):
                break
        stopped = should_stop()
        if stopped and epoch > 0:
            break  # the best weights of the epochs before are kept
        if len(losses) < steps and not stopped and epoch > 0:
            break  # the time is up in the middle of an epoch
        train_loss = float(torch.stack(losses).mean())
        if not math.isfinite(train_loss):
            raise TrainingError(
                "diverged",
                f"The loss is not a number any more in epoch {epoch + 1}.",
                "Choose a lower learning rate.",
            )
        speed = len(losses) * plan.batch_size / (time.monotonic() - epoch_start)
        val_loss, dice, iou = validate(average, plan, val, loss_of)
        epoch += 1
        score = -val_loss if math.isnan(dice) else dice  # no foreground among the validation slices: go by the loss
        if score > best_score:
            best_score, best_epoch = score, epoch
            save_weights(best, average.state_dict(), {"epoch": epoch, "val_dice": dice})
        tensors, facts = pack(network, average, optimizer, rng, generator)
        counters = {"epoch": epoch, "step": step, "best_score": best_score, "best_epoch": best_epoch}
        save_weights(latest, tensors, {**facts, **counters, "seconds": time.monotonic() - start})
        on_event(
            {
                "type": "epoch",
                "epoch": epoch,
                "train_loss": train_loss,
                "val_loss": val_loss,
                "val_dice": dice,
                "val_iou": iou,
                "learning_rate": rate,
                "seconds": time.monotonic() - epoch_start,
                "images_per_second": speed,
            }
        )
        on_event(clock.progress(epoch, step, steps, train_loss=train_loss, val_dice=dice, images_per_second=speed))
        stopped = stopped or should_stop()
        if plan.early_stopping_patience and epoch - best_epoch >= plan.early_stopping_patience:
            break
    if not best.exists():
        return TrainResult(None, epoch, 0, stopped, warnings)
    average.load_state_dict(load_weights(best)[0])
    return TrainResult(average, epoch, best_epoch, stopped, warnings)


class _Clock:
    """How far the training is, by epochs or by time, whichever ends first."""

    def __init__(self, plan: Plan, start: float, deadline: float | None, steps_before: int) -> None:
        self.plan, self.start, self.deadline = plan, start, deadline
        self.first_step, self.first_time = steps_before, time.monotonic()
        self.seconds_a_step = 0.0

    def measure(self, now: float, step: int) -> None:
        self.seconds_a_step = (now - self.first_time) / max(1, step - self.first_step)

    def fraction(self, step: int, steps: int) -> float:
        by_epochs = step / (self.plan.epochs * steps) if self.plan.epochs else 0.0
        by_time = 0.0
        if self.deadline is not None:
            by_time = (time.monotonic() - self.start) / max(1e-6, self.deadline - self.start)
        return min(1.0, max(by_epochs, by_time))

    def learning_rate(self, step: int, steps: int) -> float:
        """Linear warm-up, then half a cosine down to a hundredth (Loshchilov 2017)."""
        warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
        cosine = 0.5 * (1 + math.cos(math.pi * self.fraction(step, steps)))
        return self.plan.learning_rate * warm_up * (0.01 + 0.99 * cosine)

    def is_late(self, now: float) -> bool:
        return self.deadline is not None and now >= self.deadline

    def is_over(self, epoch: int) -> bool:
        return (self.plan.epochs is not None and epoch >= self.plan.epochs) or (
            epoch > 0 and self.is_late(time.monotonic())
        )

    def epochs_in_all(self, step: int, steps: int) -> int:
        """The epochs asked for, or as many as the time left will do at the speed so far."""
        fitting = None
        if self.deadline is not None and self.seconds_a_step:
            fitting = math.ceil((step + (self.deadline - time.monotonic()) / self.seconds_a_step) / steps)
        wanted = [number for number in (self.plan.epochs, fitting) if number is not None]
        return max(1, min(wanted)) if wanted else 1

    def progress(self, epoch: int, step: int, steps: int, **numbers: float) -> dict[str, Any]:
        epochs = max(self.epochs_in_all(step, steps), epoch)
        left = max(0, epochs * steps - step) * self.seconds_a_step
        return {
            "type": "progress",
            "stage": "training",
            "step": step,
            "steps": epochs * steps,
            "epoch": min(epoch + 1, epochs),
            "epochs": epochs,
            "fraction": self.fraction(step, steps),
            "eta_seconds": round(left, 1),
            **numbers,
        }


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, step: int) -> None:
    """Exponential moving average of weights, following quickly at first; statistics of normalisation layers as well."""
    keep = min(AVERAGE_DECAY, (1 + step) / (10 + step))
    targets, sources = [], []
    for target, source in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if target.is_floating_point():
            targets.append(target)
            sources.append(source)
        else:
            target.copy_(source)
    torch._foreach_lerp_(targets, sources, 1 - keep)


@torch.no_grad()
def validate(network: nn.Module, plan: Plan, cases: list[StoredCase], loss_of: nn.Module) -> tuple[float, float, float]:
    """(loss, Dice, IoU): overlaps counted over all pixels of evenly chosen whole slices, then averaged over foreground classes."""
    slices = [(case, index) for case in cases for index in range(len(case.labels))]
    chosen = [slices[int(i)] for i in np.linspace(0, len(slices) - 1, min(VALIDATION_SLICES, len(slices)))]
    classes = len(plan.class_values)
    counts, losses = torch.zeros(classes, classes, dtype=torch.long), []
    for case, index in chosen:
        images = torch.from_numpy(case.images[index : index + 1].astype(np.float32))
        labels = torch.from_numpy(case.labels[index : index + 1].astype(np.int64))
        logits = forward_slices(network, images, plan)
        losses.append(float(loss_of(logits.cpu(), labels)))
        counts += _confusion(labels, logits.argmax(1).cpu(), classes)
    rows = [_overlap(counts, index) for index in range(1, classes)]
    return (
        float(np.mean(losses)),
        _defined_mean([row["dice"] for row in rows]),
        _defined_mean([row["iou"] for row in rows]),
    )


def _confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    return torch.bincount((labels * classes + predicted).flatten(), minlength=classes**2).reshape(classes, classes)


def _overlap(counts: Tensor, index: int) -> dict[str, float]:
    tp = int(counts[index, index])
    return overlap_metrics(tp, int(counts[:, index].sum()) - tp, int(counts[index].sum()) - tp)


def _defined_mean(values: list[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan
