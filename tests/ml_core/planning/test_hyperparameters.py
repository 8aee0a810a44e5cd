"""One table says what can be asked for."""

from __future__ import annotations

import math
from typing import Any

import jsonschema
import pytest

from ml_core.networks.catalogue import build
from ml_core.planning.hyperparameters import groups, json_schema, specs
from ml_core.planning.request import Chooser, ConfigErrors, TrainingRequest


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", True),
        ("epochs", "10"),
        ("learning_rate", -1),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("batch_size", 10_000),
        ("patch_size", 100),
        ("architecture", "no-such-net"),
        ("encoder", []),
        ("seed", -1),
        ("validation_fraction", 0.9),
        ("no_such_parameter", 1),
    ],
)
def test_what_cannot_be_used_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigErrors) as caught:
        TrainingRequest.from_json({name: value})
    assert list(caught.value.fields) == [name]


def test_all_errors_come_at_once() -> None:
    with pytest.raises(ConfigErrors) as caught:
        TrainingRequest.from_json({"epochs": 0, "learning_rate": 5, "x": 1})
    assert set(caught.value.fields) == {"epochs", "learning_rate", "x"}


def test_an_encoder_must_fit_its_architecture() -> None:
    with pytest.raises(ConfigErrors, match="cannot use mit_b0"):
        TrainingRequest.from_json({"architecture": "unetplusplus", "encoder": "mit_b0"})


def test_whole_numbers_may_come_as_floats_and_nothing_is_everything_planned() -> None:
    assert TrainingRequest.from_json({"epochs": 2.0}).get("epochs") == 2
    assert TrainingRequest.from_json({}).to_json() == {}
    assert TrainingRequest.from_json({"epochs": None}).to_json() == {}


def test_the_schema_is_valid_and_says_the_same() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid({"epochs": 5, "learning_rate": 0.01, "architecture": "unet"})
    assert not validator.is_valid({"epochs": 0})
    assert not validator.is_valid({"other": 1})
    assert set(schema["properties"]) == set(specs())
    assert all(entry["description"] for entry in schema["properties"].values())


def test_every_entry_stands_once_under_a_heading_and_explains_its_default() -> None:
    assert [name for entries in groups().values() for name in entries] == list(specs())
    for name, spec in specs().items():
        assert spec.label, name
        assert spec.help, name
        assert bool(spec.reason) == (spec.default is not None), name
        if spec.default not in (None, ""):
            assert TrainingRequest.from_json({name: spec.default}).get(name) == spec.default
        if spec.choice_groups:
            assert [value for values in spec.choice_groups.values() for value in values] == list(spec.choices or {})


def test_an_entry_needs_a_default_or_a_rule() -> None:
    choose = Chooser(TrainingRequest())
    with pytest.raises(LookupError, match="configuration has neither"):
        choose.rest()


def test_weights_out_of_reach_are_a_message_not_an_error() -> None:
    network, message = build("unet", encoder="resnet18", channels=3, classes=2, encoder_weights="imagenet")
    assert sum(parameter.numel() for parameter in network.parameters()) > 1_000_000
    assert "random weights" in message
