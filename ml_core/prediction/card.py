"""The model card, in Markdown: what a model is, what it was trained on and how good it is."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ml_core.measures.results import ClassMetrics, Metrics
from ml_core.planning.plan import Plan
from ml_core.prediction.decisions import Decisions


def model_card(plan: Plan, metrics: Metrics | None, facts: Mapping[str, object], decisions: Decisions) -> str:
    """Write the card as Markdown. `metrics` is None if the training was stopped before its evaluation."""
    lines = [
        f"# {facts.get('name', 'Segmentation model')}",
        "",
        "Research use only, not a medical device.",
        "",
        f"{plan.architecture} with encoder {plan.encoder}, trained on {plan.fingerprint.n_cases} cases "
        f"({plan.fingerprint.modality}, {plan.configuration}).",
        "",
        "## Classes",
        "",
        *[f"- {value}: {name}" for value, name in zip(plan.class_values, plan.class_names, strict=True)],
        "",
        "## Held-out cases",
        "",
        *(_held_out(metrics) if metrics else ["None: the training was stopped before its evaluation."]),
        *_decided(decisions),
        "",
        "## Plan",
        "",
        "| setting | value | reason |",
        "|---|---|---|",
    ]
    values = {**plan.hyperparameters(), "dimensions": plan.dimensions}
    lines += [f"| {name} | {value} | {plan.reasons[name]} |" for name, value in values.items() if name in plan.reasons]
    return "\n".join(lines) + "\n"


def _held_out(metrics: Metrics) -> list[str]:
    return [
        f"Full images in their own resolution; cases of the {metrics.evaluated_on} part: {metrics.n_cases}; HD95 in "
        f"{metrics.unit}. Undefined (class in neither mask) is left out of a mean and counted; a miss counts as 0.",
        "",
        "| class | Dice | IoU | precision | recall | HD95 | NSD | cases | undefined | misses |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *map(_class_row, metrics.per_class),
        "",
        f"Expected calibration error {_shown(metrics.calibration.ece)} over all pixels, "
        f"{_shown(metrics.calibration.ece_foreground)} where foreground is or was found.",
    ]


def _class_row(row: ClassMetrics) -> str:
    numbers = map(_shown, (row.dice, row.iou, row.precision, row.recall, row.hd95, row.nsd))
    return f"| {row.name} | {' | '.join(numbers)} | {row.n_cases} | {row.undefined} | {row.misses} |"


def _decided(decisions: Decisions) -> list[str]:
    """The section about what was measured on the validation cases and decided by it; empty if nothing was."""
    made = {
        "serving": decisions.serving,
        "mirroring": decisions.mirroring,
        "postprocessing": decisions.postprocessing,
    }
    lines = [f"- {name}: {decision.reason}" for name, decision in made.items() if decision]
    return ["", "## Measured on the validation cases", "", *lines] if lines else []


def _shown(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.4f}"
