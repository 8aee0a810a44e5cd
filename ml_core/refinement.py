"""After the training: what helps beside the network is measured on the validation cases, and used only if it does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ml_core.data import Case, label_indices
from ml_core.device import pick_device
from ml_core.io import Image, read_image, read_mask
from ml_core.metrics import overlap_metrics
from ml_core.package import Refinements
from ml_core.plan import Plan
from ml_core.postprocessing import Postprocessing, choose
from ml_core.predictor import Predictor
from ml_core.serving import Forward, NotConvertibleError, OpenVinoForward, TorchForward, convert
from ml_core.serving import choose as choose_runtime

log = logging.getLogger(__name__)

WORTH_IT = (
    0.0003  # of mean Dice that mirroring must gain; small, since the same weights are compared on the same cases,
)
MOSTLY = 2 / 3  # but on so many of the cases, since it multiplies the time of every prediction


@dataclass
class Member:
    """One trained network and the cases that its best weights were chosen on."""

    network: nn.Module
    cases: list[Case]
    forward: Forward = field(init=False)
    converted: tuple[bytes, bytes] | None = None


def refine(
    members: list[Member],
    plan: Plan,
    *,
    seconds: float,
    mirroring: bool,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Refinements, dict[str, Any]]:
    """Choose converted networks, mirroring and post-processing. Sets each member's `forward` and, where kept, `converted`.

    `seconds`: about how long it may take: fewer cases are looked at where they are slow. Returns what is used and, for the
    package, the decisions with their numbers.
    """
    start = time.monotonic()
    decisions: dict[str, Any] = {"serving": _convert(members, plan, start + 0.4 * seconds)}
    on_progress(1, 3)
    used, decisions["mirroring"] = _mirroring(members, plan, start + 0.8 * seconds, mirroring)
    on_progress(2, 3)
    refinements = Refinements(mirroring=used)
    chosen, decisions["postprocessing"] = _postprocessing(members, plan, refinements, start + seconds)
    on_progress(3, 3)
    return replace(refinements, postprocessing=chosen), decisions


def _convert(members: list[Member], plan: Plan, deadline: float) -> dict[str, Any]:
    """On a CPU: the quicker of OpenVINO and PyTorch in the plan's precision, where its label maps agree with float32's."""
    for member in members:
        member.forward = TorchForward(member.network, plan.precision)
    if pick_device().type == "cuda":
        reason = f"PyTorch in {plan.precision}: the machine has a GPU."
        return {"runtime": "torch", "precision": plan.precision, "reason": reason}
    runtime, seconds = _quickest(members[0], plan)
    decisions = []
    for member in members:
        if runtime == "openvino":
            member.converted = member.converted or _converted(member.network, plan)
            member.forward = OpenVinoForward(*member.converted, plan.precision)
        fast, exact = (Predictor([way], plan) for way in (member.forward, TorchForward(member.network, "fp32")))
        decisions.append(
            choose_runtime(
                lambda image, fast=fast: fast.predict(image).indices,  # type: ignore[misc]
                lambda image, exact=exact: exact.predict(image).indices,  # type: ignore[misc]
                _load(member.cases, plan, deadline),
                len(plan.class_values),
                runtime=runtime,
                precision=plan.precision,
            )
        )
    # The strictest decision is that of all networks of an ensemble.
    decision = max(decisions, key=lambda item: (item["precision"] == "fp32", item["dice_difference"] or 0.0))
    for member in members:
        if decision["runtime"] == "torch":
            member.converted = None
            member.forward = TorchForward(member.network, decision["precision"])
    return {**decision, "seconds": seconds}


def _quickest(member: Member, plan: Plan) -> tuple[str, dict[str, float]]:
    """Which runtime predicts the first validation case sooner, and both times. A network that OpenVINO cannot take stays in PyTorch."""
    image, _ = next(_load(member.cases, plan, 0.0))
    ways: dict[str, Forward] = {"torch": member.forward}
    try:
        member.converted = _converted(member.network, plan)
        ways["openvino"] = OpenVinoForward(*member.converted, plan.precision)
    except NotConvertibleError as error:
        log.info("%s", error)
    seconds = {}
    for name, forward in ways.items():
        predictor = Predictor([forward], plan)
        predictor.predict(image)  # the first one prepares
        seconds[name] = round(predictor.predict(image).seconds, 4)
    quickest = min(seconds, key=lambda name: seconds[name])
    if quickest == "torch":
        member.converted = None
    return quickest, seconds


def _converted(network: nn.Module, plan: Plan) -> tuple[bytes, bytes]:
    any_size = "img_size" not in plan.network  # UNETR is built for one
    return convert(network, torch.zeros(1, plan.in_channels, *plan.patch), any_size=any_size)


def _mirroring(members: list[Member], plan: Plan, deadline: float, affordable: bool) -> tuple[str, dict[str, Any]]:
    asked = plan.test_time_augmentation
    options = ["flips"] if plan.configuration == "3d" else ["flips", "flips and turns"]
    if asked != "measured":
        used = options[-1] if asked == "on" else "none"
        return used, {"used": used, "reason": "You chose it."}
    if not affordable:
        return "none", {"used": "none", "reason": "Not measured: it would not fit into the time budget."}
    scores: dict[str, list[float]] = {option: [] for option in ["none", *options]}
    for member in members:
        for image, reference in _load(member.cases, plan, deadline):
            for option, list_of in scores.items():
                predictor = Predictor([member.forward], plan, Refinements(mirroring=option))
                list_of.append(_mean_dice(predictor.predict(image).indices, reference, plan))
    means = {option: round(_defined_mean(values), 5) for option, values in scores.items()}
    best = max(options, key=lambda option: means[option])
    changes = np.subtract(scores[best], scores["none"])
    gain, better, cases = means[best] - means["none"], int((changes > 0).sum()), int(np.isfinite(changes).sum())
    used = best if gain >= WORTH_IT and better >= MOSTLY * cases else "none"
    change = f"{gain:+.4f} Dice, better on {better} of {cases} validation cases"
    reason = f"Averaging over mirrored copies: {change}." if used != "none" else f"It did not help enough: {change}."
    return used, {"used": used, "dice": means, "cases": cases, "reason": reason}


def _postprocessing(
    members: list[Member], plan: Plan, refinements: Refinements, deadline: float
) -> tuple[Postprocessing | None, dict[str, Any]]:
    if plan.postprocessing == "off":
        return None, {"used": None, "reason": "You chose it."}
    pairs = []
    for member in members:
        predictor = Predictor([member.forward], plan, refinements)
        cases = _load(member.cases, plan, deadline)
        pairs += [(predictor.predict(image).indices, reference) for image, reference in cases]
    chosen, report = choose(pairs, len(plan.class_values))
    used = chosen.to_dict() if chosen.is_active else None
    reason = "It helped on the validation cases." if used else "Nothing of it helped on the validation cases."
    return (chosen if used else None), {"used": used, "measured": report, "cases": len(pairs), "reason": reason}


def _load(cases: list[Case], plan: Plan, deadline: float) -> Iterator[tuple[Image, NDArray[np.uint8]]]:
    """Evenly chosen ones, one by one, until the time is up; at least one."""
    order = np.argsort([index * 0.618034 % 1 for index in range(len(cases))])  # any beginning of it is spread evenly
    for count, index in enumerate(order):
        if count and time.monotonic() > deadline:
            return
        case = cases[int(index)]
        image = read_image(case.image)
        values = read_mask(case.mask, like=image).values
        yield image, label_indices(values, plan.class_values, case.name)


def _mean_dice(found: NDArray[np.uint8], reference: NDArray[np.uint8], plan: Plan) -> float:
    """Over the foreground classes."""
    dice = []
    for index in range(1, len(plan.class_values)):
        one, other = found == index, reference == index
        tp = int(np.count_nonzero(one & other))
        dice.append(overlap_metrics(tp, int(one.sum()) - tp, int(other.sum()) - tp)["dice"])
    return _defined_mean(dice)


def _defined_mean(values: list[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
