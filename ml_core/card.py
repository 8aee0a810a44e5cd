"""The model card: what a model is, what it was trained on and how good it was, in Markdown."""

from __future__ import annotations

from typing import Any

from ml_core.planning import Plan


def model_card(plan: Plan, metrics: dict[str, Any], facts: dict[str, Any]) -> str:
    """`metrics` as ml_core.evaluation gives them, with null for undefined; {} where the training was cancelled."""
    lines = [
        f"# {facts.get('name', 'Segmentation model')}",
        "",
        "Research use only, not a medical device.",
        "",
        f"{plan.architecture} with encoder {plan.encoder}, trained on {plan.fingerprint['n_cases']} cases "
        f"({plan.fingerprint['modality']}, {plan.dimensions}D).",
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
            f"Full images in their own resolution; {metrics['n_cases']} cases of the {metrics['evaluated_on']} part; HD95 in "
            f"{metrics['unit']}. Undefined (class in neither mask) is left out of a mean and counted; a miss counts as 0.",
            "",
            "| class | Dice | IoU | precision | recall | HD95 | NSD | cases | undefined | misses |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in metrics["per_class"]:
            numbers = " | ".join(_shown(row[name]) for name in ("dice", "iou", "precision", "recall", "hd95", "nsd"))
            lines.append(f"| {row['name']} | {numbers} | {row['n_cases']} | {row['undefined']} | {row['misses']} |")
    else:
        lines.append("None: the training was stopped before its evaluation.")
    lines += ["", "## Plan", "", "| setting | value | reason |", "|---|---|---|"]
    values = {
        **plan.hyperparameters(),
        "normalisation": plan.preprocessing.normalisation,
        "precision": plan.precision,
        "dimensions": plan.dimensions,
    }
    lines += [f"| {name} | {values.get(name, '')} | {reason} |" for name, reason in plan.reasons.items()]
    return "\n".join(lines) + "\n"


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
