"""Chooses a model's runtime, mirroring and post-processing after its training, by measuring on validation cases."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ml_core.cases.patches import pad_to, with_neighbours
from ml_core.cases.preprocessing import labels_to_network, network_shape, preprocess
from ml_core.dataset.case import Case, spread_order
from ml_core.io import Image, read_image, read_mask
from ml_core.measures.metrics import IGNORED, overlap_metrics, without_ignored
from ml_core.networks.catalogue import find
from ml_core.networks.device import most_probable, pick_device
from ml_core.planning.budget import COMPARING_SHARE, MIRRORING_SHARE, Budget, Deadline, Stage
from ml_core.planning.plan import Plan
from ml_core.prediction.decisions import Decisions, MirroringDecision, PostprocessingDecision, Refinements
from ml_core.prediction.postprocessing import choose
from ml_core.prediction.predictor import WINDOW, Predictor
from ml_core.prediction.runtimes import Forward, NotConvertibleError, OpenVinoForward, Serving, TorchForward, convert
from ml_core.prediction.runtimes import choose as choose_runtime

log = logging.getLogger(__name__)

# The mean Dice that mirroring must gain. It may be small: with the same weights and cases, a difference is not chance.
WORTH_IT = 0.0003
# The share of the cases that mirroring must improve, because it multiplies the time of every prediction.
MOSTLY = 2 / 3
# Predicting a case with the quick runtime and again in float32 takes this many times as long as one prediction.
IN_FLOAT32 = 4
# How often each runtime is timed.
ROUNDS = 3
# Pieces that are compared of a case that is too large to compare as a whole.
PIECES = 8

Runtime = tuple[str, dict[str, float]]
"""The name of the quickest runtime, and the seconds that each one took."""


@dataclass
class Member:
    """One trained network, and the cases on which its best weights were chosen."""

    network: nn.Module
    cases: list[Case]
    forward: Forward = field(init=False)
    """How the network is run; `refine` sets it."""
    converted: tuple[bytes, bytes] | None = None
    """The network as an OpenVINO model (xml, weights); None if it runs in PyTorch."""


def refine(
    members: list[Member],
    plan: Plan,
    budget: Budget,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Decisions:
    """Choose the runtime, mirroring and post-processing; sets the `forward` and `converted` of each member.

    The budget, which must have its estimate, limits the time. Fewer cases are measured if they are slow. If even one is
    too slow, runtimes are compared on pieces of cases, and mirroring and post-processing are left out. on_progress:
    called with (done, total) after each of the three choices.
    """
    assert budget.estimate
    seconds, case_seconds = budget.estimate.refining_seconds, len(members) * budget.estimate.seconds_a_case
    runtime = _fastest_runtime(members, plan)
    # The deadline is set after converting, whose time would otherwise leave only one case for everything measured.
    deadline = budget.deadline_of(Stage.REFINING)
    comparing, mirroring = deadline.part(COMPARING_SHARE), deadline.part(MIRRORING_SHARE)
    serving = _agreeing(members, plan, runtime, comparing, IN_FLOAT32 * case_seconds > COMPARING_SHARE * seconds)
    on_progress(1, 3)
    mirrored = _mirroring(members, plan, mirroring, budget.estimate.mirroring)
    on_progress(2, 3)
    cleaned = _postprocessing(members, plan, Refinements(mirroring=mirrored.used), deadline, case_seconds < seconds)
    on_progress(3, 3)
    return Decisions(serving, mirrored, cleaned)


def _fastest_runtime(members: list[Member], plan: Plan) -> Runtime | None:
    """On a CPU, the quicker of OpenVINO and PyTorch in the plan's precision; None on a GPU, which uses PyTorch."""
    for member in members:
        member.forward = TorchForward(member.network, plan.precision)
    return None if pick_device().type == "cuda" else _quickest(members, plan)


def _agreeing(
    members: list[Member], plan: Plan, fastest: Runtime | None, deadline: Deadline, in_pieces: bool
) -> Serving:
    """Choose the fastest runtime if its label maps agree with those of PyTorch in float32, otherwise the latter.

    in_pieces: whether to compare pieces of cases, because whole cases take too long.
    """
    if fastest is None:
        return Serving("torch", plan.precision, f"PyTorch in {plan.precision}: the machine has a GPU.")
    runtime, seconds = fastest
    decisions = []
    for member in members:
        if runtime == "openvino":
            member.converted = member.converted or _converted(member.network, plan)
            member.forward = OpenVinoForward(*member.converted, plan.precision)
        forwards = (member.forward, TorchForward(member.network, "fp32"))
        settings: Any = {"classes": len(plan.class_values), "runtime": runtime, "precision": plan.precision}
        if in_pieces:
            fast, exact = (partial(_labels_of, way) for way in forwards)
            pieces = _pieces(member.cases, plan, deadline)
            decisions.append(choose_runtime(fast, exact, pieces, unit="validation window", **settings))
        else:
            predict_fast, predict_exact = (partial(_indices_of, Predictor([way], plan)) for way in forwards)
            decisions.append(
                choose_runtime(predict_fast, predict_exact, _load(member.cases, plan, deadline), **settings)
            )
    # All networks of an ensemble use the same runtime, so the strictest decision counts.
    decision = max(decisions, key=lambda item: (item.precision == "fp32", item.dice_difference or 0.0))
    for member in members:
        if decision.runtime == "torch":
            member.converted = None
            member.forward = TorchForward(member.network, decision.precision)
    return replace(decision, seconds=seconds)


def _quickest(members: list[Member], plan: Plan) -> Runtime:
    """Time one batch of a prediction in both runtimes.

    If OpenVINO cannot run one of the networks, only PyTorch is timed. Sets the `converted` of each member otherwise.
    """
    forwards: dict[str, Forward] = {"torch": members[0].forward}
    try:
        for member in members:
            member.converted = _converted(member.network, plan)
        assert members[0].converted
        forwards["openvino"] = OpenVinoForward(*members[0].converted, plan.precision)
    except NotConvertibleError as error:
        log.info("%s", error)
    batch = _typical(members[0].cases[0], plan)
    times_of: dict[str, list[float]] = {name: [] for name in forwards}
    # The runtimes take turns, so that other work of the machine slows both. The first round only warms up.
    for number in range(ROUNDS + 1):
        for name, forward in forwards.items():
            begun = time.perf_counter()
            forward(batch)
            if number:
                times_of[name].append(time.perf_counter() - begun)
    seconds = {name: round(min(times), 4) for name, times in times_of.items()}
    return min(seconds, key=lambda name: seconds[name]), seconds


def _typical(case: Case, plan: Plan) -> NDArray[np.float32]:
    """Random values (1, C, *spatial) in the size of one forward pass: a window of a volume, a picture or a slice."""
    spatial: tuple[int, ...] = plan.patch
    if plan.configuration != "3d":
        height, width = network_shape(read_image(case.image), plan.preprocessing)[1:]
        spatial = tuple(plan.padded_shape((min(WINDOW, height), min(WINDOW, width))))
    return np.random.default_rng(0).normal(0, 1, (1, plan.in_channels, *spatial)).astype(np.float32)


def _indices_of(predictor: Predictor, image: Image) -> NDArray[np.uint8]:
    return predictor.predict(image).indices


def _labels_of(forward: Forward, batch: NDArray[np.float32]) -> NDArray[np.uint8]:
    return most_probable(torch.from_numpy(forward(batch)))[0].to(torch.uint8).numpy()


def _pieces(
    cases: list[Case], plan: Plan, deadline: Deadline
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    """Yield PIECES patches of each case as float32 (1, C, *patch), with their class positions uint8 (*patch).

    The patches lie around random places of the case's classes, one class after the other.
    """
    for image, reference in _load(cases, plan, deadline):
        images = preprocess(image, plan.preprocessing)
        labels = labels_to_network(reference, image, plan.preprocessing)
        rng, classes = np.random.default_rng(0), np.unique(labels[labels != IGNORED])
        for number in range(PIECES if len(classes) else 0):
            places = np.argwhere(labels == classes[number % len(classes)])
            index, *place = (int(item) for item in places[rng.integers(len(places))])
            low = [
                min(max(0, spot - size // 2), max(0, length - size))
                for spot, size, length in zip(place, plan.patch, labels.shape[1:], strict=True)
            ]
            window = tuple(slice(start, start + size) for start, size in zip(low, plan.patch, strict=True))
            piece = pad_to(with_neighbours(images, index, plan.context, window), plan.patch)
            yield np.ascontiguousarray(piece[None]), pad_to(labels[index][window], plan.patch)


def _converted(network: nn.Module, plan: Plan) -> tuple[bytes, bytes]:
    example = torch.zeros(1, plan.in_channels, *plan.patch)
    return convert(network, example, any_size=find(plan.architecture).takes_any_size)


def _mirroring(members: list[Member], plan: Plan, deadline: Deadline, affordable: bool) -> MirroringDecision:
    """Decide whether predictions are averaged over mirrored copies, by the mean Dice of validation cases."""
    choice = plan.test_time_augmentation
    options = ["flips"] if plan.configuration == "3d" else ["flips", "flips and turns"]
    if choice != "measured":
        return MirroringDecision(options[-1] if choice == "on" else "none", "You chose it.")
    if not affordable:
        return MirroringDecision("none", "Not measured: it would not fit into the time budget.")
    scores: dict[str, list[float]] = {option: [] for option in ["none", *options]}
    for member in members:
        for image, reference in _load(member.cases, plan, deadline):
            for option, values in scores.items():
                predictor = Predictor([member.forward], plan, Refinements(mirroring=option))
                values.append(_mean_dice(predictor.predict(image).indices, reference, plan))
    means = {option: round(_defined_mean(values), 5) for option, values in scores.items()}
    best = max(options, key=lambda option: means[option])
    changes = np.subtract(scores[best], scores["none"])
    gain, better, cases = means[best] - means["none"], int((changes > 0).sum()), int(np.isfinite(changes).sum())
    used = best if gain >= WORTH_IT and better >= MOSTLY * cases else "none"
    change = f"{gain:+.4f} Dice, better on {better} of {cases} validation cases"
    reason = f"Averaging over mirrored copies: {change}." if used != "none" else f"It did not help enough: {change}."
    return MirroringDecision(used, reason, means, cases)


def _postprocessing(
    members: list[Member], plan: Plan, refinements: Refinements, deadline: Deadline, affordable: bool
) -> PostprocessingDecision:
    """Decide how label maps are cleaned, by the mean Dice of validation cases."""
    if plan.postprocessing == "off":
        return PostprocessingDecision(None, "You chose it.")
    if not affordable:
        return PostprocessingDecision(None, "Not measured: it would not fit into the time budget.")
    # A generator, because the volumes of a dataset do not fit into memory together.
    pairs = (
        (Predictor([member.forward], plan, refinements).predict(image).indices, reference)
        for member in members
        for image, reference in _load(member.cases, plan, deadline)
    )
    chosen, report = choose(pairs, len(plan.class_values))
    used = chosen if chosen.is_active else None
    reason = "It helped on the validation cases." if used else "None of the steps helped on the validation cases."
    return PostprocessingDecision(used, reason, report, report.cases)


def _load(cases: list[Case], plan: Plan, deadline: Deadline) -> Iterator[tuple[Image, NDArray[np.uint8]]]:
    """Read cases that are spread evenly over all, one at a time, until the deadline; at least one.

    Yields each image with its reference as class positions uint8.
    """
    for count, index in enumerate(spread_order(len(cases))):
        if count and deadline.is_over():
            return
        case = cases[index]
        image = read_image(case.image)
        yield image, case.indices(read_mask(case.mask, like=image), plan.class_values, plan.fingerprint.ignored)


def _mean_dice(prediction: NDArray[np.uint8], reference: NDArray[np.uint8], plan: Plan) -> float:
    """The mean Dice over the foreground classes for which it is defined; NaN if there are none."""
    dice = []
    reference, prediction = without_ignored(reference, prediction)
    for index in range(1, len(plan.class_values)):
        predicted, truth = prediction == index, reference == index
        tp = int(np.count_nonzero(predicted & truth))
        dice.append(overlap_metrics(tp, int(predicted.sum()) - tp, int(truth.sum()) - tp)["dice"])
    return _defined_mean(dice)


def _defined_mean(values: list[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
