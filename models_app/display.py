"""What the pages show of a plan and of a model: its documents turned into rows for the templates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from medseg_site.shared.base.text import count_of
from ml_core.measures.results import CaseMetrics, Interval, Metrics, Reliability
from ml_core.planning.hyperparameters import specs
from models_app.models import SegmentationModel

MAX_WORST_CASES = 6
# Heading → hyperparameters, in the order in which pages show them. Every one is in exactly one group.
GROUPS = {
    "Network": ["configuration", "architecture", "encoder", "encoder_weights", "deep_supervision", "warm_start"],
    "Images and patches": [
        "spacing",
        "normalisation",
        "patch_size",
        "patch_depth",
        "batch_size",
        "foreground_share",
        "augmentation",
    ],
    "Learning": [
        "loss",
        "class_weights",
        "optimizer",
        "learning_rate",
        "weight_decay",
        "warm_up_steps",
        "clip_norm",
        "weight_average",
        "precision",
        "torch_compile",
        "seed",
    ],
    "Data and time": [
        "time_budget_seconds",
        "epochs",
        "early_stopping_patience",
        "validation_fraction",
        "test_fraction",
        "folds",
        "seeds",
    ],
    "After training": ["test_time_augmentation", "postprocessing"],
}
# Name in ml_core.measures.results.Scores, heading, what it means, and which unit it has.
METRICS = [
    ("dice", "Dice", "Overlap of prediction and reference: 1 is perfect.", ""),
    ("iou", "IoU", "Intersection over union: stricter than Dice, 1 is perfect.", ""),
    ("precision", "Precision", "Share of what was found that is right.", ""),
    ("recall", "Recall", "Share of what is there that was found.", ""),
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


def planned(values: dict[str, Any], reasons: dict[str, str], *, asked: set[str]) -> list[dict[str, Any]]:
    """The groups of a plan: heading, rows, and whether it is open (the first, and those in which something was asked for).

    A row: label, value (None where there is none to show), unit, reason and asked.
    """
    known = specs()
    groups: list[dict[str, Any]] = []
    for heading, names in GROUPS.items():
        rows = []
        for name in names:
            value, spec = values.get(name), known[name]
            shown = spec.choices.get(value, value) if spec.choices and value is not None else value
            if shown in (None, "") and name not in reasons:
                continue
            rows.append(
                {
                    "label": spec.label,
                    "value": None if shown == "" else shown,
                    "unit": spec.unit.removesuffix("s") if value == 1 else spec.unit,
                    "reason": reasons.get(name, ""),
                    "asked": name in asked,
                }
            )
        is_open = not groups or any(row["asked"] for row in rows)
        groups.append({"heading": heading, "rows": rows, "open": is_open})
    if "dimensions" in reasons:  # along which axis a volume is cut is no hyperparameter
        row = {"label": "Slices", "value": None, "unit": "", "reason": reasons["dimensions"], "asked": False}
        groups[1]["rows"].append(row)
    return [group for group in groups if group["rows"]]


def plan_of(model: SegmentationModel) -> list[dict[str, Any]]:
    """The groups of a model's plan; of what was asked for as long as there is no plan."""
    return planned(model.hyperparameters, model.plan.get("reasons") or {}, asked=set(model.requested))


@dataclass(frozen=True)
class Figure:
    """One number of the headline. kind: "", "distance" or "share", how it is written. interval: its 95 % interval."""

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
    """The cases that have a picture, worst Dice first; those whose Dice is undefined come last."""
    cases = [case for case in metrics.per_case if case.picture]
    return sorted(cases, key=lambda case: (math.isnan(case.dice), case.dice))[:MAX_WORST_CASES]


def reliability_points(found: Reliability) -> dict[str, list[list[float]]]:
    """Points [confidence, accuracy, pixels] of the reliability diagram, without the empty bins."""
    bins = {"all": found.bins, "foreground": found.bins_foreground}
    return {
        name: [[row.confidence, row.accuracy, row.count] for row in rows if row.count] for name, rows in bins.items()
    }


def decided(model: SegmentationModel) -> list[dict[str, Any]]:
    """What was measured on the validation cases: title, what is used, reason, and a table of numbers (head and rows)."""
    found = model.decisions
    parts = [
        ("serving", "Runtime", _serving),
        ("mirroring", "Mirroring", _mirroring),
        ("postprocessing", "Post-processing", _postprocessing),
    ]
    return [
        {"title": title, "reason": found[name].get("reason", ""), **part(found[name], model)}
        for name, title, part in parts
        if found.get(name)
    ]


def _serving(found: dict[str, Any], model: SegmentationModel) -> dict[str, Any]:
    used = f"{RUNTIMES.get(found.get('runtime', ''), '–')}, {found.get('precision', '')}"
    difference = found.get("dice_difference")
    if difference is None:
        return {"used": used, "head": [], "rows": []}
    is_of_windows = found.get("unit") == "validation window"
    cases = count_of(found["cases"], "window") if is_of_windows else _cases(found)
    row = ["Largest difference in Dice", f"{difference:.5f}", cases]
    return {"used": used, "head": ["Against PyTorch in fp32", "", "Cases"], "rows": [{"cells": row, "used": False}]}


def _mirroring(found: dict[str, Any], model: SegmentationModel) -> dict[str, Any]:
    used = found.get("used", "none")
    rows = [
        {"cells": [MIRRORINGS.get(name, name), _score(dice), _cases(found)], "used": name == used}
        for name, dice in (found.get("dice") or {}).items()
    ]
    return {"used": MIRRORINGS.get(used, used), "head": ["Copies", "Dice", "Cases"] if rows else [], "rows": rows}


def _postprocessing(found: dict[str, Any], model: SegmentationModel) -> dict[str, Any]:
    """Per class: as it was, and after what is used; after the best of what was tried where nothing is."""
    rows: list[dict[str, Any]] = []
    for item in (found.get("measured") or {}).get("classes") or []:
        tried = item["candidates"]
        used = [step for step in tried if step["used"]]
        shown = used or [max(tried, key=lambda step: step["dice"] if step["dice"] is not None else -1.0)]
        name = model.classes[item["class"]]["name"] if item["class"] < len(model.classes) else str(item["class"])
        what = ", ".join(step["name"] for step in shown)
        cells = [
            name,
            _score(item["dice"]),
            _score(shown[-1]["dice"]),
            what if used else f"{what} (best of those tried)",
        ]
        rows.append({"cells": cells, "used": bool(used)})
    names = {step for row in rows if row["used"] for step in row["cells"][3].split(", ")}
    used_text = ", ".join(sorted(names)).capitalize() or "None"
    return {"used": used_text, "head": ["Class", "Dice before", "after", "by"] if rows else [], "rows": rows}


def _cases(found: dict[str, Any]) -> str:
    return str(found.get("cases", "–"))


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
