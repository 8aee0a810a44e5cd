"""What the tests of the pages share: rows in the states that pages show, and words to look for."""

from __future__ import annotations

import re
from typing import Any

from django.contrib.messages import get_messages
from django.test import Client

from inference.models import InferenceBatch, InferenceResult
from tests.factories import (
    CompletedModelFactory,
    InferenceFactory,
    project_of,
)

HTMX = {"HX-Request": "true"}
NOTICE = "Research use only, not a medical device"
LISTS = [
    "home",
    "datasets:list",
    "datasets:upload",
    "models_app:list",
    "models_app:create",
    "inference:list",
    "inference:create",
]
SCORES = {
    "dice": 0.875,
    "iou": 0.7,
    "precision": 0.9,
    "recall": 0.8,
    "hd95": None,
    "nsd": 0.6,
    "volume_error": 12.5,
    "volume_error_relative": 0.25,
}
INTERVALS = {
    **{name: [None, None] for name in SCORES},
    "dice": [0.8125, 0.9375],
    "volume_error_relative": [0.125, 0.5],
}
CLASS = {"value": 255, "name": "cell", "color": "#f59f00"}


def _case(name: str, sample: int, dice: float | None, **more: Any) -> dict[str, Any]:
    of_class = {**SCORES, "dice": dice, "value": 255}
    case = {**SCORES, "dice": dice, "name": name, "sample": sample, "picture": True, "confidence": 0.5, **more}
    return {**case, "per_class": [of_class]}


METRICS = {
    **SCORES,
    "ci95": INTERVALS,
    "n_cases": 4,
    "n_defined": 3,
    "n_units": 4,
    "misses": 6,
    "not_found": 3,
    "misplaced": 1,
    "false_alarms": 2,
    "undefined": 1,
    "evaluated_on": "test",
    "held_out": 4,
    "unit": "mm",
    "volume_unit": "mm³",
    "per_class": [
        {
            **SCORES,
            **CLASS,
            "dice": 0.5,
            "volume_error": 1240.4,
            "volume_error_relative": 0.375,
            "ci95": INTERVALS,
            "n_cases": 1,
            "undefined": 1,
            "misses": 6,
            "not_found": 3,
            "misplaced": 1,
            "false_alarms": 2,
        }
    ],
    "calibration": {
        "ece": 0.0123,
        "ece_foreground": 0.0789,
        "bins": [
            {"low": 0.0, "high": 0.5, "confidence": None, "accuracy": None, "count": 0},
            {"low": 0.5, "high": 1.0, "confidence": 0.9, "accuracy": 0.8, "count": 10},
        ],
        "bins_foreground": [],
    },
    "per_case": [
        _case("good one", 1, 0.99),
        _case("bad one", 2, 0.11, confidence=0.4321),
        _case("unseen one", 3, 0.01, picture=False),
        _case("undefined one", 4, None),
    ],
}
IMAGE_METRICS = {
    **{name: SCORES[name] for name in ("precision", "recall", "nsd")},
    "dice": 0.625,
    "iou": 0.5,
    "hd95": 3.25,
    "per_class": [{**SCORES, **CLASS, "dice": 0.5625}],
    "unit": "px",
}
DECISIONS = {
    "serving": {
        "runtime": "openvino",
        "precision": "bf16",
        "dice_difference": 0.00012,
        "cases": 4,
        "reason": "OpenVINO in bf16: its Dice differs by at most 0.00012 from PyTorch in fp32 on 4 validation cases.",
    },
    "mirroring": {
        "used": "flips",
        "dice": {"none": 0.8, "flips": 0.8123, "flips and turns": 0.811},
        "cases": 4,
        "reason": "Averaging over mirrored copies: +0.0123 Dice on 4 validation cases.",
    },
    "postprocessing": {
        "used": None,
        "cases": 4,
        "reason": "Nothing of it helped on the validation cases.",
        "measured": {
            "margin": 0.001,
            "cases": 4,
            "classes": [
                {
                    "class": 1,
                    "dice": 0.8123,
                    "misses": 0,
                    "candidates": [
                        {
                            "name": name,
                            "dice_before": 0.8123,
                            "dice": dice,
                            "misses_before": 0,
                            "misses": 0,
                            "used": False,
                        }
                        for name, dice in (("largest component", 0.7), ("fill holes", 0.8125))
                    ],
                }
            ],
        },
    },
}
ESTIMATE = {
    "seconds_a_step": 0.5,
    "images_per_second": 16.4,
    "seconds_a_case": 0.2,
    "seconds_to_score": 0.1,
    "reserve_seconds": 30.0,
    "refining_seconds": 20.0,
    "mirroring": True,
    "peak_memory": 1_500_000_000,
    "epochs": 42,
    "seconds": 300.0,
}
CLASSES = [
    {"value": 0, "name": "background", "color": "#495057", "pixels": 1000, "fraction": 0.9, "volume_ml": None},
    {"value": 255, "name": "cell", "color": "#f59f00", "pixels": 111, "fraction": 0.1, "volume_ml": 1.5},
]


def text(client: Client, url: str, **headers: Any) -> str:
    """The page's HTML. A run of white space is one space, as for a browser: where a template breaks its lines says nothing."""
    answer = client.get(url, **headers)
    assert answer.status_code == 200, (url, answer.status_code)
    return re.sub(r"[ \t\n]+", " ", answer.content.decode())


def completed_inference(**columns: Any) -> InferenceResult:
    row: InferenceResult = InferenceFactory.create(
        status="completed",
        output_image_s3_key="x/y.png",
        output_sha256="0" * 64,
        **{"shape": [8, 9], "classes": CLASSES, **columns},
    )
    return row


def batch(**columns: Any) -> InferenceBatch:
    given = {"status": "queued", "archive_name": "images.zip", "model": CompletedModelFactory.create(), **columns}
    row = InferenceBatch(**given)
    if "project" not in given:
        row.project = project_of(row)
    row.save()
    return row


def said(answer: Any) -> list[str]:
    return [str(message) for message in get_messages(answer.wsgi_request)]
