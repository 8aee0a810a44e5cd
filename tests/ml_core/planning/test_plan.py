"""The forms in which a plan and its parts are kept: in rows, manifests and packages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ml_core.planning.plan import Machine, Plan, Preprocessing
from tests.ml_core.dataset.test_fingerprint import STORED as FINGERPRINT
from tests.ml_core.planning.test_rules import GPU, LAPTOP, fingerprint, plan

PREPROCESSING: dict[str, Any] = json.loads("""{
  "channels": 1, "normalisation": "image", "low": 60.0, "high": 240.0, "mean": 150.0, "std": 30.0, "slice_axis": 2, "whole": true,
  "spacing": [2.5, 0.8, 0.8], "unit": "mm", "assumed_spacing": [2.5, 0.8, 0.8], "without_air": true, "wide": false
}""")
STORED: dict[str, Any] = {
    **json.loads("""{
  "configuration": "3d", "architecture": "plain-unet-3d", "encoder": "plain-16", "encoder_weights": "none", "deep_supervision": "off",
  "warm_start": "", "spacing": "2.5 0.8 0.8", "normalisation": "image", "patch_size": 64, "patch_depth": 32, "batch_size": 2,
  "foreground_share": 0.33, "augmentation": "intensity", "loss": "dice_ce", "class_weights": "balanced", "optimizer": "adamw",
  "learning_rate": 0.002, "weight_decay": 0.0001, "warm_up_steps": 20, "clip_norm": 5.0, "weight_average": 0.99, "precision": "bf16",
  "torch_compile": "off", "seed": 0, "time_budget_seconds": 300, "epochs": null, "early_stopping_patience": 0,
  "validation_fraction": 0.15, "test_fraction": 0.2, "folds": 1, "seeds": 1, "test_time_augmentation": "measured",
  "postprocessing": "measured",
  "reasons": {"epochs": "As many as fit into the time budget.", "dimensions": "Slices are the axial ones, the volumes' finest plane."},
  "network": {"features": [16, 32], "strides": [[1, 1, 1], [1, 2, 2]], "kernels": [[1, 3, 3], [3, 3, 3]], "convolutions": [2, 2],
              "norm": "batch", "deep_supervision": false},
  "balanced_weights": [0.5, 1.5], "class_values": [0, 255], "class_names": ["background", "cell"], "class_colors": ["#495057", "#f59f00"],
  "dimensions": 3
}"""),
    "preprocessing": PREPROCESSING,
    "fingerprint": FINGERPRINT,
}


def test_the_form_of_a_plan_is_frozen() -> None:
    read = Plan.from_json(STORED)
    assert read.to_json() == STORED
    assert (read.patch, read.epochs, read.preprocessing.spacing) == ((32, 64, 64), None, [2.5, 0.8, 0.8])
    assert read.padded_shape((5, 71, 70)) == [16, 72, 70]


def test_the_form_of_preprocessing_is_frozen() -> None:
    assert Preprocessing.from_json(PREPROCESSING).to_json() == PREPROCESSING


def test_the_form_of_a_machine_is_frozen() -> None:
    stored = {"cuda": True, "cpus": 16, "bf16": True, "memory": 40_000_000_000}
    assert Machine.from_json(stored) == Machine(cuda=True, cpus=16, bf16=True, memory=40_000_000_000)
    assert Machine.from_json(stored).to_json() == stored


@pytest.mark.parametrize("machine", [LAPTOP, GPU])
@pytest.mark.parametrize("wanted", [{}, {"epochs": 3}, {"configuration": "2.5d", "class_weights": "balanced"}])
def test_a_plan_is_read_back_as_it_was_made(machine: Machine, wanted: dict[str, Any]) -> None:
    made = plan(machine, fingerprint((40, 96, 96), (1.0, 1.0, 1.0)), **wanted)
    assert Plan.from_json(json.loads(json.dumps(made.to_json()))) == made
    assert set(made.to_json()) == set(STORED)


def test_a_plan_that_lacks_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="loss"):
        Plan.from_json({name: value for name, value in STORED.items() if name != "loss"})
