"""What a model package says of the decisions, as the platform shows them."""

from __future__ import annotations

from typing import Any

import pytest

from ml_core.prediction.decisions import Decisions, MirroringDecision, PostprocessingDecision, Refinements
from ml_core.prediction.postprocessing import Candidate, ClassReport, Cleaning, Postprocessing, Report
from ml_core.prediction.runtimes import Serving
from tests.pages import DECISIONS

MEASURED = Decisions(
    Serving("openvino", "bf16", "OpenVINO in bf16.", 0.0001, 4, "validation case", {"torch": 0.2, "openvino": 0.1}),
    MirroringDecision("flips", "It helped.", {"none": 0.8, "flips": 0.9}, 4),
    PostprocessingDecision(
        Postprocessing({1: Cleaning(minimum_size=16)}),
        "It helped.",
        Report(0.001, 4, [ClassReport(1, 0.8, 1, [Candidate("minimum size 16", 0.8, 0.9, 1, 0, used=True)])]),
        4,
    ),
)
AS_JSON: dict[str, Any] = {
    "serving": {
        "runtime": "openvino",
        "precision": "bf16",
        "reason": "OpenVINO in bf16.",
        "dice_difference": 0.0001,
        "cases": 4,
        "unit": "validation case",
        "seconds": {"torch": 0.2, "openvino": 0.1},
    },
    "mirroring": {"used": "flips", "reason": "It helped.", "dice": {"none": 0.8, "flips": 0.9}, "cases": 4},
    "postprocessing": {
        "used": {"1": {"largest_component": False, "minimum_size": 16, "fill_holes": False}},
        "reason": "It helped.",
        "measured": {
            "margin": 0.001,
            "cases": 4,
            "classes": [
                {
                    "class": 1,
                    "dice": 0.8,
                    "misses": 1,
                    "candidates": [
                        {
                            "name": "minimum size 16",
                            "dice_before": 0.8,
                            "dice": 0.9,
                            "misses_before": 1,
                            "misses": 0,
                            "used": True,
                        }
                    ],
                }
            ],
        },
        "cases": 4,
    },
}
CHOSEN = Decisions(
    Serving("torch", "bf16", "A GPU."),
    MirroringDecision("none", "You chose it."),
    PostprocessingDecision(None, "You chose it."),
)


@pytest.mark.parametrize(
    ("decisions", "values"),
    [
        (MEASURED, AS_JSON),
        (
            CHOSEN,
            {
                "serving": {"runtime": "torch", "precision": "bf16", "reason": "A GPU."},
                "mirroring": {"used": "none", "reason": "You chose it."},
                "postprocessing": {"used": None, "reason": "You chose it."},
            },
        ),
        (Decisions(), {}),
    ],
    ids=["measured", "chosen", "stopped before"],
)
def test_the_form_of_decisions(decisions: Decisions, values: dict[str, Any]) -> None:
    assert decisions.to_json() == values
    assert Decisions.from_json(values) == decisions


def test_what_the_pages_show_are_decisions() -> None:
    assert Decisions.from_json(DECISIONS).to_json() == DECISIONS


def test_the_refinements_are_what_was_decided() -> None:
    assert MEASURED.refinements() == Refinements("flips", Postprocessing({1: Cleaning(minimum_size=16)}))
    assert Decisions().refinements() == CHOSEN.refinements() == Refinements()
