"""Turns the plan, the metrics and the decisions of a model into rows for the templates."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from medseg_site.shared.base.text import count_of
from ml_core.measures.results import CaseMetrics, Interval, Metrics, Reliability
from ml_core.planning.hyperparameters import groups
from ml_core.planning.plan import Plan
from ml_core.planning.spec import IMAGES, Spec, Value
from ml_core.prediction.decisions import Decisions, MirroringDecision, PostprocessingDecision
from ml_core.prediction.runtimes import Serving
from models_app.models import SegmentationModel

MAX_WORST_CASES = 6
# Name in ml_core.measures.results.Scores, heading, meaning, and how its value is written (see Figure.kind).
METRICS = [
    ("dice", "Dice", "Overlap of prediction and reference: 1 is perfect.", ""),
    ("iou", "IoU", "Intersection over union: stricter than Dice, 1 is perfect.", ""),
    ("precision", "Precision", "Share of the prediction that is right.", ""),
    ("recall", "Recall", "Share of the reference that was found.", ""),
    ("hd95", "HD95", "95 % of the outline lies at most this far from the other outline: 0 is perfect.", "distance"),
    ("nsd", "NSD", "Share of the outlines that lie within the tolerance: 1 is perfect.", ""),
    (
        "volume_error_relative",
        "Volume error",
        "How much too large or too small the volume is, as a share of the larger of both. The mean ignores the sign.",
        "share",
    ),
]
RUNTIMES = {"openvino": "OpenVINO", "torch": "PyTorch"}
MIRRORINGS = {"none": "Not mirrored", "flips": "Flips", "flips and turns": "Flips and quarter turns"}


@dataclass(frozen=True)
class PlanRow:
    """One hyperparameter. `value` is None when there is none to show. `asked` says whether the user chose it."""

    label: str
    value: Value | None
    unit: str
    reason: str
    asked: bool


@dataclass
class PlanGroup:
    """The hyperparameters of one heading. `open` says whether the page shows them at first."""

    heading: str
    rows: list[PlanRow]
    open: bool


def planned(
    values: Mapping[str, Value | None], reasons: Mapping[str, str], *, asked: Collection[str]
) -> list[PlanGroup]:
    """The rows of a plan, by heading. Open are the first group and every group in which the user chose something."""
    plan_groups: list[PlanGroup] = []
    for heading, specs in groups().items():
        rows = [_plan_row(name, spec, values.get(name), reasons, name in asked) for name, spec in specs.items()]
        shown = [row for row in rows if row.value is not None or row.reason]
        plan_groups.append(PlanGroup(heading, shown, not plan_groups or any(row.asked for row in shown)))
    # The axis along which a volume is cut into slices is not a hyperparameter, so it has no row yet.
    if "dimensions" in reasons:
        images = next(group for group in plan_groups if group.heading == IMAGES)
        images.rows.append(PlanRow("Slices", None, "", reasons["dimensions"], False))
    return [group for group in plan_groups if group.rows]


def _plan_row(name: str, spec: Spec, value: Value | None, reasons: Mapping[str, str], asked: bool) -> PlanRow:
    shown = spec.choices.get(str(value), value) if spec.choices and value is not None else value
    unit = spec.unit.removesuffix("s") if value == 1 else spec.unit
    return PlanRow(spec.label, None if shown == "" else shown, unit, reasons.get(name, ""), asked)


def plan_of(model: SegmentationModel) -> list[PlanGroup]:
    """The plan of a model. Until there is one, the hyperparameters that were asked for."""
    if not model.plan:
        return planned(model.requested, {}, asked=model.requested)
    plan = Plan.from_json(model.plan)
    return planned(plan.hyperparameters(), plan.reasons, asked=model.requested)


@dataclass(frozen=True)
class Figure:
    """One number of the headline. `interval` is its 95 % interval.

    `kind` is "", "distance" or "share" and decides how the number is written.
    """

    name: str
    label: str
    help: str
    value: float
    interval: Interval
    kind: str
    cases: int


def headline(metrics: Metrics) -> list[Figure]:
    return [
        Figure(
            name,
            f"{label} ({metrics.unit})" if kind == "distance" else label,
            text,
            getattr(metrics, name),
            metrics.ci95[name],
            kind,
            metrics.n_defined,
        )
        for name, label, text, kind in METRICS
    ]


def worst_cases(metrics: Metrics) -> list[CaseMetrics]:
    """At most MAX_WORST_CASES cases with a picture, the worst Dice first. Those with an undefined Dice come last."""
    cases = [case for case in metrics.per_case if case.picture]
    return sorted(cases, key=lambda case: (math.isnan(case.dice), case.dice))[:MAX_WORST_CASES]


def reliability_points(reliability: Reliability) -> dict[str, list[list[float]]]:
    """Points [confidence, accuracy, pixels] of the reliability diagram, without the empty bins."""
    bins = {"all": reliability.bins, "foreground": reliability.bins_foreground}
    return {
        name: [[row.confidence, row.accuracy, row.count] for row in rows if row.count] for name, rows in bins.items()
    }


@dataclass(frozen=True)
class DecisionRow:
    """A row of a table of numbers. `used` says whether the model does what this row describes."""

    cells: list[str]
    used: bool


@dataclass(frozen=True)
class DecisionPart:
    """One decision from the validation cases: what the model uses, why, and the table of numbers behind it."""

    title: str
    used: str
    reason: str
    head: list[str] = field(default_factory=list)
    rows: list[DecisionRow] = field(default_factory=list)


def decided(model: SegmentationModel) -> list[DecisionPart]:
    """The decisions of a model: its runtime, its mirroring and its post-processing, as far as they were made."""
    decisions, parts = Decisions.from_json(model.decisions), []
    if decisions.serving:
        parts.append(_serving(decisions.serving))
    if decisions.mirroring:
        parts.append(_mirroring(decisions.mirroring))
    if decisions.postprocessing:
        parts.append(_postprocessing(decisions.postprocessing, [item["name"] for item in model.classes]))
    return parts


def _serving(serving: Serving) -> DecisionPart:
    used = f"{RUNTIMES[serving.runtime]}, {serving.precision}"
    if serving.dice_difference is None:
        return DecisionPart("Runtime", used, serving.reason)
    cases = count_of(serving.cases or 0, "window") if serving.unit == "validation window" else str(serving.cases)
    row = DecisionRow(["Largest difference in Dice", f"{serving.dice_difference:.5f}", cases], used=False)
    return DecisionPart("Runtime", used, serving.reason, ["Against PyTorch in fp32", "", "Cases"], [row])


def _mirroring(mirroring: MirroringDecision) -> DecisionPart:
    rows = [
        DecisionRow([MIRRORINGS[name], _score(dice), str(mirroring.cases)], name == mirroring.used)
        for name, dice in (mirroring.dice or {}).items()
    ]
    head = ["Copies", "Dice", "Cases"] if rows else []
    return DecisionPart("Mirroring", MIRRORINGS[mirroring.used], mirroring.reason, head, rows)


def _postprocessing(postprocessing: PostprocessingDecision, names: list[str]) -> DecisionPart:
    """For every class, the Dice before and after the steps in use. If none is in use, the best one tried is shown."""
    rows, steps = [], set[str]()
    for item in postprocessing.measured.classes if postprocessing.measured else []:
        used = [step for step in item.candidates if step.used]
        shown = used or [max(item.candidates, key=lambda step: -1.0 if math.isnan(step.dice) else step.dice)]
        steps |= {step.name for step in used}
        what = ", ".join(step.name for step in shown) + ("" if used else " (best of those tried)")
        rows.append(DecisionRow([names[item.index], _score(item.dice), _score(shown[-1].dice), what], bool(used)))
    head = ["Class", "Dice before", "after", "by"] if rows else []
    return DecisionPart(
        "Post-processing", ", ".join(sorted(steps)).capitalize() or "None", postprocessing.reason, head, rows
    )


def _score(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"
