"""Trains one network. From top to bottom: the loop over epochs, the learner, one epoch, one step, one validation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ml_core.cases.patches import PatchSampler
from ml_core.cases.store import StoredCase
from ml_core.errors import TrainingError
from ml_core.networks.catalogue import build
from ml_core.networks.compiling import Forward, compile_forward
from ml_core.networks.device import autocast, memory_layout, pick_device
from ml_core.planning.budget import NO_DEADLINE, Deadline, Pace, steps_of_an_epoch
from ml_core.planning.plan import Plan
from ml_core.training.batches import BatchLoader
from ml_core.training.events import CurvePoint, NetworkReport, OnEvent, Started
from ml_core.training.losses import make_loss
from ml_core.training.optimizers import (
    clip_gradients,
    learning_rate,
    make_optimizers,
    set_learning_rate,
    update_average,
)
from ml_core.training.state import Checkpoints, State, begin_with, load_weights, pack
from ml_core.training.validation import Validator


@dataclass(frozen=True)
class Fitted:
    """The result of training one network."""

    network: nn.Module | None
    """The network with its best weights; None if it was stopped before the first epoch ended."""
    epochs: int
    """The number of epochs that are over."""
    best_epoch: int
    """The epoch of the best weights; 0 if there are none."""
    stopped: bool
    """Whether somebody stopped the training."""
    warnings: list[str]
    """Sentences for the reader of the result."""


def fit(
    plan: Plan,
    train: list[StoredCase],
    val: list[StoredCase],
    folder: Path,
    *,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
    deadline: Deadline = NO_DEADLINE,
    warm_start: dict[str, Tensor] | None = None,
) -> Fitted:
    """Train until the last epoch is done, the deadline is near, the patience ends, or `should_stop` returns True.

    Writes latest.safetensors (everything that resuming needs) and best.safetensors (the averaged weights with the best
    validation Dice) to `folder`, and resumes from latest.safetensors if it exists. deadline: without the time that
    earlier attempts took. warm_start: the state_dict of an earlier model to begin with. Raises TrainingError if the
    loss diverges, or a checkpoint is damaged.

    The same seed gives the same curve on the same machine if `plan.epochs` ends the training. With a deadline the
    learning rate follows the clock, so curves differ a little from run to run. On a GPU they may differ too, because it
    adds numbers in no fixed order.
    """
    learner, warnings = make_learner(plan, warm_start)
    sampler, validator = PatchSampler(train, plan), Validator(val, plan, learner.loss_of)
    checkpoints = Checkpoints(folder, deadline.clock)
    state = before = checkpoints.restore(learner.network, learner.average, learner.optimizers)
    on_event(Started(state.epoch, state.curve))
    pace = Pace(plan, deadline, seconds=state.seconds, step=state.step)
    report = NetworkReport(on_event, pace, steps_of_an_epoch(sampler.units(), validator.pixels(), plan))
    stopped, between_epochs = False, True
    with BatchLoader(sampler, plan, learner.device, first_step=state.step) as batches:
        while not stopped and not pace.is_over(state.epoch):
            epoch = one_epoch(learner, batches, state, pace, report, should_stop)
            stopped = should_stop()
            if stopped and state.epoch > 0:
                # A training resumes at the end of an epoch, and these weights are from the middle of one.
                between_epochs = False
                break
            point = validate(learner, validator, state.epoch + 1, epoch, pace)
            state = state.after(point, steps=epoch.steps, seconds=pace.seconds())
            if state.is_best:
                checkpoints.better(learner.average, point)
            checkpoints.keep(learner.tensors, state)
            report.epoch(point)
            stopped = stopped or should_stop()
            if plan.early_stopping_patience and state.epoch - state.best_epoch >= plan.early_stopping_patience:
                break
    checkpoints.keep_best()
    if between_epochs and state is not before:
        checkpoints.keep(learner.tensors, state, at_once=True)
    if not checkpoints.best.exists():
        return Fitted(None, state.epoch, 0, stopped, warnings)
    learner.average.load_state_dict(load_weights(checkpoints.best))
    return Fitted(learner.average, state.epoch, state.best_epoch, stopped, warnings)


@dataclass(frozen=True)
class Learner:
    """A network in training, with everything that a step uses."""

    plan: Plan
    network: nn.Module
    """The network that every step changes."""
    average: nn.Module
    """A copy whose weights are the moving average over the last steps. This copy is validated and kept."""
    optimizers: list[torch.optim.Optimizer]
    loss_of: nn.Module
    """(logits, labels) → the loss, a scalar."""
    forward: Forward
    """What a step calls: the network itself, or compiled code that uses its weights."""
    device: torch.device

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that the next step depends on, by name."""
        return pack(self.network, self.average, self.optimizers)


def make_learner(plan: Plan, warm_start: dict[str, Tensor] | None) -> tuple[Learner, list[str]]:
    """Make the learner with which a training starts, and warnings about what differs from the plan."""
    torch.manual_seed(plan.seed)
    device = pick_device()
    network, message = build(
        plan.architecture,
        encoder=plan.encoder,
        channels=plan.in_channels,
        classes=len(plan.class_values),
        encoder_weights=plan.encoder_weights,
        arguments=plan.network,
    )
    warnings = [message] if message else []
    if warm_start is not None:
        warnings += begin_with(network, warm_start)
    network = network.to(device).to(memory_format=memory_layout(len(plan.patch)))
    average = copy.deepcopy(network).eval()
    optimizers = make_optimizers(network, plan)
    loss_of = make_loss(
        plan.loss, class_weights=plan.balanced_weights or None, ignores=bool(plan.fingerprint.ignored)
    ).to(device)
    forward: Forward = network
    if plan.torch_compile == "on":
        shape = (plan.batch_size, plan.in_channels, *plan.patch)
        forward, failed = compile_forward(network, shape, plan.precision, loss_of, device)
        warnings += [failed] if failed else []
    return Learner(plan, network, average, optimizers, loss_of, forward, device), warnings


@dataclass(frozen=True)
class Epoch:
    """The steps of one epoch, before its validation."""

    steps: int
    """The number of steps; fewer than usual if somebody stopped the training or the time was over."""
    begun: float
    """The seconds of the training before the epoch."""
    train_loss: float
    """The mean loss over the steps."""
    learning_rate: float
    """The learning rate of the last step."""
    images_per_second: float
    """Patches learnt from per second."""


def one_epoch(
    learner: Learner,
    batches: BatchLoader,
    state: State,
    pace: Pace,
    report: NetworkReport,
    should_stop: Callable[[], bool],
) -> Epoch:
    """Take the steps of the epoch that follows `state`, as many as there is time for; at least one."""
    plan, steps, begun = learner.plan, report.steps, pace.seconds()
    learner.network.train()
    losses: list[Tensor] = []
    rate = plan.learning_rate
    for index in range(steps):
        step = state.step + index
        rate = learning_rate(plan, step, pace.fraction(state.epoch + index / steps))
        images, labels = batches.next()
        losses.append(one_step(learner, images, labels, step, rate))
        pace.measure(step + 1)
        if report.is_due():
            speed = len(losses) * plan.batch_size / (pace.seconds() - begun)
            done = state.epoch + len(losses) / steps
            report.progress(state.epoch, done, float(losses[-1]), speed)
        if should_stop() or pace.is_late():
            break
    train_loss = float(torch.stack(losses).mean())
    speed = len(losses) * plan.batch_size / (pace.seconds() - begun)
    return Epoch(len(losses), begun, train_loss, rate, speed)


def one_step(learner: Learner, images: Tensor, labels: Tensor, step: int, rate: float) -> Tensor:
    """Change the weights by one batch. Returns its loss, which stays on the device, so that no step waits for it.

    images: float32 (B, C, *patch). labels: int64 (B, *patch). step: the number of steps before this one. rate: the
    learning rate.
    """
    plan, network = learner.plan, learner.network
    set_learning_rate(learner.optimizers, rate)
    # Dropout must draw the same numbers after an interruption as without one.
    torch.manual_seed(plan.seed + step)
    with autocast(learner.device, plan.precision):
        logits = learner.forward(images)
    loss: Tensor = learner.loss_of(logits, labels)
    network.zero_grad(set_to_none=True)
    # PyTorch has no types for this.
    loss.backward()  # type: ignore[no-untyped-call]
    if plan.clip_norm:
        clip_gradients(network, plan.clip_norm)
    for optimizer in learner.optimizers:
        optimizer.step()
    update_average(learner.average, network, step + 1, plan.weight_average)
    return loss.detach()


def validate(learner: Learner, validator: Validator, number: int, epoch: Epoch, pace: Pace) -> CurvePoint:
    """Validate the averaged weights after an epoch. Raises TrainingError if the loss of the epoch is not finite.

    number: the number of the epoch, from 1.
    """
    if not math.isfinite(epoch.train_loss):
        reason = f"The loss stopped being a finite number in epoch {number}."
        raise TrainingError("diverged", reason, "Choose a lower learning rate.")
    val_loss, dice, iou = validator.validate(learner.average)
    seconds = pace.seconds() - epoch.begun
    return CurvePoint(
        number, epoch.train_loss, val_loss, dice, iou, epoch.learning_rate, seconds, epoch.images_per_second
    )
