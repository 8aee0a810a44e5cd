"""After the training: what helps beside the network is measured on the validation cases, and used only if it does."""

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
from ml_core.measures.metrics import overlap_metrics, without_ignored
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

WORTH_IT = 0.0003  # of mean Dice that mirroring must gain; small, since the same weights see the same cases,
MOSTLY = 2 / 3  # but on so many of the cases, since it multiplies the time of every prediction
IN_FLOAT32 = 4  # times as long as one prediction takes a quick one beside its like in float32
ROUNDS = 3  # of each runtime, to see which is quicker
PIECES = 8  # of a case that is too large to compare whole

Runtime = tuple[str, dict[str, float]]  # its name, and the seconds of each


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
    budget: Budget,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Decisions:
    """Choose converted networks, mirroring and post-processing. Sets each member's `forward` and, where kept, `converted`.

    The budget, which has its estimate, says how long it may take: fewer cases are looked at where they are slow, pieces of them where
    even one is too slow.
    """
    assert budget.estimate
    seconds, of_all = budget.estimate.refining_seconds, len(members) * budget.estimate.seconds_a_case
    runtime = _fastest_runtime(members, plan)
    # Converting is not part of the time: it would leave one case to everything that is measured.
    deadline = budget.deadline_of(Stage.REFINING)
    comparing, mirroring = deadline.part(COMPARING_SHARE), deadline.part(MIRRORING_SHARE)
    serving = _agreeing(members, plan, runtime, comparing, IN_FLOAT32 * of_all > COMPARING_SHARE * seconds)
    on_progress(1, 3)
    mirrored = _mirroring(members, plan, mirroring, budget.estimate.mirroring)
    on_progress(2, 3)
    cleaned = _postprocessing(members, plan, Refinements(mirroring=mirrored.used), deadline, of_all < seconds)
    on_progress(3, 3)
    return Decisions(serving, mirrored, cleaned)


def _fastest_runtime(members: list[Member], plan: Plan) -> Runtime | None:
    """On a CPU the quicker of OpenVINO and PyTorch in the plan's precision; None on a GPU, which needs no other than PyTorch."""
    for member in members:
        member.forward = TorchForward(member.network, plan.precision)
    return None if pick_device().type == "cuda" else _quickest(members, plan)


def _agreeing(
    members: list[Member], plan: Plan, fastest: Runtime | None, deadline: Deadline, in_pieces: bool
) -> Serving:
    """The fastest runtime, where its label maps agree with float32's."""
    if fastest is None:
        return Serving("torch", plan.precision, f"PyTorch in {plan.precision}: the machine has a GPU.")
    runtime, seconds = fastest
    decisions = []
    for member in members:
        if runtime == "openvino":
            member.converted = member.converted or _converted(member.network, plan)
            member.forward = OpenVinoForward(*member.converted, plan.precision)
        ways = (member.forward, TorchForward(member.network, "fp32"))
        settings: Any = {"classes": len(plan.class_values), "runtime": runtime, "precision": plan.precision}
        if in_pieces:
            fast, exact = (partial(_labels_of, way) for way in ways)
            pieces = _pieces(member.cases, plan, deadline)
            decisions.append(choose_runtime(fast, exact, pieces, unit="validation window", **settings))
        else:
            whole, exactly = (partial(_indices_of, Predictor([way], plan)) for way in ways)
            decisions.append(choose_runtime(whole, exactly, _load(member.cases, plan, deadline), **settings))
    # The strictest decision is that of all networks of an ensemble.
    decision = max(decisions, key=lambda item: (item.precision == "fp32", item.dice_difference or 0.0))
    for member in members:
        if decision.runtime == "torch":
            member.converted = None
            member.forward = TorchForward(member.network, decision.precision)
    return replace(decision, seconds=seconds)


def _quickest(members: list[Member], plan: Plan) -> Runtime:
    """Which runtime takes what a prediction gives it at once sooner, and the seconds of both.

    The networks stay in PyTorch where OpenVINO cannot take one of them.
    """
    ways: dict[str, Forward] = {"torch": members[0].forward}
    try:
        for member in members:
            member.converted = _converted(member.network, plan)
        assert members[0].converted
        ways["openvino"] = OpenVinoForward(*members[0].converted, plan.precision)
    except NotConvertibleError as error:
        log.info("%s", error)
    batch = _typical(members[0].cases[0], plan)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):  # in turn, so that what else the machine does meets both; the first ones prepare
        for name, forward in ways.items():
            begun = time.perf_counter()
            forward(batch)
            if number:
                taken[name].append(time.perf_counter() - begun)
    seconds = {name: round(min(times), 4) for name, times in taken.items()}
    return min(seconds, key=lambda name: seconds[name]), seconds


def _typical(case: Case, plan: Plan) -> NDArray[np.float32]:
    """(1, C, *spatial) as one forward pass of a prediction of this case gets it: a window of a volume, a picture or slice."""
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
    """Of each case a few patches around places of its classes in turn: (1, C, *patch), and class positions (*patch)."""
    for image, reference in _load(cases, plan, deadline):
        images = preprocess(image, plan.preprocessing)
        labels = labels_to_network(reference, image, plan.preprocessing)
        rng, classes = np.random.default_rng(0), np.unique(labels)
        for number in range(PIECES):
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
    asked = plan.test_time_augmentation
    options = ["flips"] if plan.configuration == "3d" else ["flips", "flips and turns"]
    if asked != "measured":
        return MirroringDecision(options[-1] if asked == "on" else "none", "You chose it.")
    if not affordable:
        return MirroringDecision("none", "Not measured: it would not fit into the time budget.")
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
    return MirroringDecision(used, reason, means, cases)


def _postprocessing(
    members: list[Member], plan: Plan, refinements: Refinements, deadline: Deadline, affordable: bool
) -> PostprocessingDecision:
    if plan.postprocessing == "off":
        return PostprocessingDecision(None, "You chose it.")
    if not affordable:
        return PostprocessingDecision(None, "Not measured: it would not fit into the time budget.")
    pairs = (
        (Predictor([member.forward], plan, refinements).predict(image).indices, reference)
        for member in members
        for image, reference in _load(member.cases, plan, deadline)
    )  # one by one: a dataset's volumes do not fit into memory together
    chosen, report = choose(pairs, len(plan.class_values))
    used = chosen if chosen.is_active else None
    reason = "It helped on the validation cases." if used else "Nothing of it helped on the validation cases."
    return PostprocessingDecision(used, reason, report, report.cases)


def _load(cases: list[Case], plan: Plan, deadline: Deadline) -> Iterator[tuple[Image, NDArray[np.uint8]]]:
    """Evenly chosen ones, one by one, until the time is up; at least one."""
    for count, index in enumerate(spread_order(len(cases))):
        if count and deadline.is_over():
            return
        case = cases[index]
        image = read_image(case.image)
        yield image, case.indices(read_mask(case.mask, like=image), plan.class_values, plan.fingerprint.ignored)


def _mean_dice(found: NDArray[np.uint8], reference: NDArray[np.uint8], plan: Plan) -> float:
    """Over the foreground classes."""
    dice = []
    reference, found = without_ignored(reference, found)
    for index in range(1, len(plan.class_values)):
        one, other = found == index, reference == index
        tp = int(np.count_nonzero(one & other))
        dice.append(overlap_metrics(tp, int(one.sum()) - tp, int(other.sum()) - tp)["dice"])
    return _defined_mean(dice)


def _defined_mean(values: list[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
