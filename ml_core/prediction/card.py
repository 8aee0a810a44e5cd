"""The model card: what a model is, what it was trained on and how good it was, in Markdown."""

from __future__ import annotations

from typing import Any

from ml_core.planning.plan import Plan


def model_card(plan: Plan, metrics: dict[str, Any], facts: dict[str, Any], decisions: dict[str, Any]) -> str:
    """`metrics` as ml_core.training.evaluation gives them, with null for undefined; {} where the training was cancelled."""
    lines = [
        f"# {facts.get('name', 'Segmentation model')}",
        "",
        "Research use only, not a medical device.",
        "",
        f"{plan.architecture} with encoder {plan.encoder}, trained on {plan.fingerprint['n_cases']} cases "
        f"({plan.fingerprint['modality']}, {plan.configuration}).",
        "",
        "## Classes",
        "",
        *[f"- {value}: {name}" for value, name in zip(plan.class_values, plan.class_names, strict=True)],
        "",
        "## Held-out cases",
        "",
    ]
    if metrics:
        lines += [
            f"Full images in their own resolution; cases of the {metrics['evaluated_on']} part: {metrics['n_cases']}; HD95 in "
            f"{metrics['unit']}. Undefined (class in neither mask) is left out of a mean and counted; a miss counts as 0.",
            "",
            "| class | Dice | IoU | precision | recall | HD95 | NSD | cases | undefined | misses |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in metrics["per_class"]:
            numbers = " | ".join(_shown(row[name]) for name in ("dice", "iou", "precision", "recall", "hd95", "nsd"))
            lines.append(f"| {row['name']} | {numbers} | {row['n_cases']} | {row['undefined']} | {row['misses']} |")
        calibration = metrics["calibration"]
        lines += [
            "",
            f"Expected calibration error {_shown(calibration['ece'])} over all pixels, "
            f"{_shown(calibration['ece_foreground'])} where foreground is or was found.",
        ]
    else:
        lines.append("None: the training was stopped before its evaluation.")
    lines += _decision_lines(decisions)
    lines += ["", "## Plan", "", "| setting | value | reason |", "|---|---|---|"]
    values = {
        **plan.hyperparameters(),
        "dimensions": plan.dimensions,
    }
    lines += [f"| {name} | {values.get(name, '')} | {reason} |" for name, reason in plan.reasons.items()]
    return "\n".join(lines) + "\n"


def _decision_lines(decisions: dict[str, Any]) -> list[str]:
    """What was measured on the validation cases, and what came of it."""
    if not decisions:
        return []
    names = [name for name in ("serving", "mirroring", "postprocessing") if name in decisions]
    found = [f"- {name}: {decisions[name]['reason']}" for name in names]
    return ["", "## Measured on the validation cases", "", *found]


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
