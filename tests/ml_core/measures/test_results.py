"""The forms in which metrics are kept: in rows, manifests, packages and the API's answers."""

from __future__ import annotations

import json
import math
from typing import Any

from ml_core.measures.metrics import NAMES
from ml_core.measures.results import ImageMetrics, Metrics

STORED: dict[str, Any] = json.loads("""{
  "dice": 0.875, "iou": 0.75, "precision": 0.9, "recall": 0.8, "hd95": null, "nsd": 0.6, "volume_error": 12.5,
  "volume_error_relative": 0.25,
  "ci95": {"dice": [0.8, 0.9], "iou": [0.7, 0.8], "precision": [0.8, 1.0], "recall": [0.7, 0.9], "hd95": [null, null], "nsd": [0.5, 0.7],
           "volume_error": [10.0, 14.0], "volume_error_relative": [0.125, 0.5]},
  "n_cases": 1, "n_defined": 1, "n_units": 1,
  "undefined": 1, "misses": 6, "not_found": 3, "misplaced": 1, "false_alarms": 2,
  "per_class": [
    {"value": 255, "name": "cell", "color": "#f59f00",
     "dice": 0.5, "iou": 0.3, "precision": 0.9, "recall": 0.4, "hd95": null, "nsd": 0.6, "volume_error": 1.5,
     "volume_error_relative": 0.375,
     "ci95": {"dice": [null, null]},
     "n_cases": 1, "undefined": 1, "misses": 6, "not_found": 3, "misplaced": 1, "false_alarms": 2}
  ],
  "per_case": [
    {"name": "case 1", "sample": 7, "picture": true, "confidence": 0.4321,
     "dice": 0.9, "iou": 0.8, "precision": 0.9, "recall": 0.9, "hd95": 1.5, "nsd": 0.6, "volume_error": 1.5,
     "volume_error_relative": 0.375,
     "per_class": [
       {"value": 255, "dice": 0.9, "iou": 0.8, "precision": 0.9, "recall": 0.9, "hd95": 1.5, "nsd": 0.6, "volume_error": -1.5,
        "volume_error_relative": -0.375}
     ]}
  ],
  "evaluated_on": "test", "held_out": 4, "unit": "mm", "volume_unit": "mm³",
  "calibration": {
    "ece": 0.0123, "ece_foreground": null,
    "bins": [{"low": 0.0, "high": 0.5, "confidence": null, "accuracy": null, "count": 0}],
    "bins_foreground": [{"low": 0.5, "high": 1.0, "confidence": 0.9, "accuracy": 0.8, "count": 10}]
  }
}""")
STORED_OF_AN_IMAGE: dict[str, Any] = json.loads("""{
  "dice": 0.625, "iou": 0.5, "precision": 0.9, "recall": 0.8, "hd95": null, "nsd": 0.6, "unit": "px",
  "per_class": [
    {"value": 255, "name": "cell", "color": "#f59f00", "dice": 0.5625, "iou": 0.4, "precision": 0.9, "recall": 0.8, "hd95": null,
     "nsd": 0.6, "volume_error": -3.0, "volume_error_relative": -0.25}
  ]
}""")


def test_the_form_of_a_models_metrics_is_frozen() -> None:
    read = Metrics.from_json(STORED)
    assert read.to_json() == STORED
    assert math.isnan(read.hd95)
    assert read.ci95["dice"] == (0.8, 0.9)
    assert all(math.isnan(bound) for bound in read.ci95["hd95"])
    assert (read.per_class[0].name, read.per_case[0].per_class[0].volume_error) == ("cell", -1.5)
    assert math.isnan(read.calibration.ece_foreground)
    assert set(NAMES) == set(read.ci95)


def test_the_form_of_an_images_metrics_is_frozen() -> None:
    read = ImageMetrics.from_json(STORED_OF_AN_IMAGE)
    assert read.to_json() == STORED_OF_AN_IMAGE
    assert math.isnan(read.per_class[0].hd95)
