"""The training loop, top to bottom."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ml_core.cases.patches import PatchSampler
from ml_core.cases.store import StoredCase
from ml_core.errors import TrainingError
from ml_core.networks.catalogue import build
from ml_core.networks.compiling import Forward, compile_forward
from ml_core.networks.device import autocast, memory_layout, pick_device
from ml_core.planning.budget import Clock
from ml_core.planning.plan import Plan
from ml_core.training.batches import BatchLoader
from ml_core.training.losses import make_loss
from ml_core.training.optimizers import clip_gradients, make_optimizers, set_learning_rate
from ml_core.training.state import Keeper, load_weights, pack, unpack
from ml_core.training.validation import Validator

SECONDS_BETWEEN_PROGRESS = 0.5
LEAST_STEPS, MOST_STEPS = 8, 250  # an epoch has
AVERAGED_EACH, AVERAGED_LATER = 100, 4  # steps that are all averaged, and every how many after them
VALIDATION_SHARE = 0.06  # of an epoch's time, at most, unless the epoch would get too long


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
    warm_start: dict[str, Tensor] | None = None,
) -> TrainResult:
    """Train until the epochs are done, the deadline (time.monotonic) is near, patience ends or `should_stop` says so.

    Writes latest.safetensors (everything, to go on from) and best.safetensors (averaged weights of the best validation
    Dice) to `folder` after epochs and at the end, and goes on from latest where it is there already. `warm_start`: weights to begin with.
    One seed gives one curve on one machine as long as `plan.epochs` says when to end; with a deadline the learning rate follows
    the clock, so curves differ a little from run to run. So they may on a GPU, whose convolutions add up in no fixed order.
    """
    torch.manual_seed(plan.seed)
    device, warnings = pick_device(), []
    network, message = build(
        plan.architecture,
        encoder=plan.encoder,
        channels=plan.in_channels,
        classes=len(plan.class_values),
        encoder_weights=plan.encoder_weights,
        arguments=plan.network,
    )
    if message:
        warnings.append(message)
    if warm_start is not None:
        warnings += begin_with(network, warm_start)
    network = network.to(device).to(memory_format=memory_layout(len(plan.patch)))
    average = copy.deepcopy(network).eval()
    optimizers = make_optimizers(network, plan)
    loss_of = make_loss(plan.loss, class_weights=plan.balanced_weights or None).to(device)
    forward: Forward = network
    if plan.torch_compile == "on":
        shape = (plan.batch_size, plan.in_channels, *plan.patch)
        forward, failed = compile_forward(network, shape, plan.precision, loss_of, device)
        warnings += [failed] if failed else []
    sampler, validator = PatchSampler(train, plan), Validator(val, plan, loss_of)
    steps = steps_of_an_epoch(sampler.units(), validator.pixels(), plan)

    keeper = Keeper(folder)
    epoch, step, best_epoch, spent = 0, 0, 0, 0.0
    best_score: tuple[float, float] = (-math.inf, -math.inf)
    curve: list[dict[str, Any]] = []
    if keeper.latest.exists():
        tensors, facts = load_weights(keeper.latest)
        unpack(tensors, network, average, optimizers)
        epoch, step, spent = facts["epoch"], facts["step"], facts["seconds"]
        best_epoch, curve = facts["best_epoch"], facts.get("curve", [])
        kept = facts["best_score"]  # of a version before it was the Dice alone
        best_score = (kept[0], kept[1]) if isinstance(kept, list) else (kept, -math.inf)
        if keeper.epoch_of_best() < best_epoch:
            # The best weights got lost (another machine could not store them), and no later ones might beat their score:
            # those of the last epoch are the best there is.
            last = curve[-1] if curve else {}
            best_score, best_epoch = score_of(last.get("val_dice", math.nan), last.get("val_loss", math.nan)), epoch
            keeper.better(average, {"epoch": epoch, "val_dice": last.get("val_dice", math.nan)})
        if deadline is not None:
            deadline -= spent  # the time used before the interruption counts
    # With the curve so far: who listened before the interruption may not have come to write all of it down.
    on_event({"type": "start", "epoch": epoch, "curve": curve})
    whole_epochs = False  # the network is where an epoch ended, and nobody stopped it after that
    start = time.monotonic() - spent
    clock = Clock(plan, start, deadline, step)
    stopped, reported = False, 0.0

    with BatchLoader(sampler, plan, device, first_step=step) as batches:
        while not clock.is_over(epoch) and not stopped:
            network.train()
            epoch_start, losses = time.monotonic(), []
            for index in range(steps):
                rate = clock.learning_rate(step, epoch + index / steps)
                set_learning_rate(optimizers, rate)
                images, labels = batches.next()
                torch.manual_seed(plan.seed + step)  # dropout repeats, also after an interruption
                with autocast(device, plan.precision):
                    logits = forward(images)
                loss = loss_of(logits, labels)
                network.zero_grad(set_to_none=True)
                loss.backward()
                if plan.clip_norm:
                    clip_gradients(network, plan.clip_norm)
                for optimizer in optimizers:
                    optimizer.step()
                step += 1
                update_average(average, network, step, plan.weight_average)
                losses.append(loss.detach())
                now = time.monotonic()
                clock.measure(now, step)
                if now - reported > SECONDS_BETWEEN_PROGRESS:
                    reported = now
                    speed = (index + 1) * plan.batch_size / (now - epoch_start)
                    done = epoch + (index + 1) / steps
                    on_event(clock.progress(epoch, done, steps, train_loss=float(losses[-1]), images_per_second=speed))
                if should_stop() or clock.is_late(now):
                    break
            stopped = should_stop()
            if stopped and epoch > 0:
                whole_epochs = False
                break  # the best weights of the epochs before are kept
            train_loss = float(torch.stack(losses).mean())
            if not math.isfinite(train_loss):
                raise TrainingError(
                    "diverged",
                    f"The loss is not a number any more in epoch {epoch + 1}.",
                    "Choose a lower learning rate.",
                )
            speed = len(losses) * plan.batch_size / (time.monotonic() - epoch_start)
            val_loss, dice, iou = validator.validate(average)
            epoch += 1
            score = score_of(dice, val_loss)
            if score > best_score:
                best_score, best_epoch = score, epoch
                keeper.better(average, {"epoch": epoch, "val_dice": dice})
            point = {
                "epoch": epoch,
                "train_loss": train_loss,
                "val_loss": val_loss,
                "val_dice": dice,
                "val_iou": iou,
                "learning_rate": rate,
                "seconds": time.monotonic() - epoch_start,
                "images_per_second": speed,
            }
            curve = [*curve, point]
            facts = {"epoch": epoch, "step": step, "best_score": best_score, "best_epoch": best_epoch, "curve": curve}
            facts["seconds"] = time.monotonic() - start
            keeper.keep(lambda: pack(network, average, optimizers), facts)
            whole_epochs = True
            on_event({"type": "epoch", **point})
            on_event(clock.progress(epoch, epoch, steps, train_loss=train_loss, val_dice=dice, images_per_second=speed))
            stopped = stopped or should_stop()
            if plan.early_stopping_patience and epoch - best_epoch >= plan.early_stopping_patience:
                break
    keeper.keep_best()
    if whole_epochs:
        keeper.keep(lambda: pack(network, average, optimizers), facts, at_once=True)
    if not keeper.best.exists():
        return TrainResult(None, epoch, 0, stopped, warnings)
    average.load_state_dict(load_weights(keeper.best)[0])
    return TrainResult(average, epoch, best_epoch, stopped, warnings)


def score_of(dice: float, val_loss: float) -> tuple[float, float]:
    """Larger is better: by the Dice; without foreground, or with none found, by the loss."""
    return (0.0 if math.isnan(dice) else dice, -val_loss if math.isfinite(val_loss) else -math.inf)


def steps_of_an_epoch(units: int, validation_pixels: int, plan: Plan) -> int:
    """About one pass over the data, and so many steps that the validation after them costs little beside them.

    A pixel costs three times as much in training as in validation, where nothing goes backwards.
    """
    a_pass = math.ceil(units / plan.batch_size)
    worth_validating = validation_pixels / 3 / VALIDATION_SHARE / (plan.batch_size * math.prod(plan.patch))
    return min(max(a_pass, math.ceil(worth_validating), LEAST_STEPS), MOST_STEPS)


def begin_with(network: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """Load what fits; the sentences say how much did."""
    own = network.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    network.load_state_dict(fitting, strict=False)
    if len(fitting) == len(own):
        return []
    if not fitting:
        return ["Nothing of the earlier model fits this network, so the training started from random weights."]
    return [
        f"Warm start: {len(fitting)} of {len(own)} tensors of the earlier model fit; the others start from random weights."
    ]


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    """Exponential moving average of weights, following quickly at first; statistics of normalisation layers as well.

    Later every fourth step is averaged: neighbours differ little, and each takes a hundredth of a step's time.
    """
    every = 1 if step <= AVERAGED_EACH else AVERAGED_LATER
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
