"""What a training can be asked for. One dataclass is the source of the form, the API's checks and the JSON Schema."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from ml_core.architectures import ARCHITECTURES, ENCODERS
from ml_core.errors import ConfigError

AUGMENTATIONS = {"none": "None", "light": "Light", "standard": "Standard", "strong": "Strong"}
LOSSES = {
    "dice_ce": "Dice + cross-entropy",
    "ce": "Cross-entropy",
    "dice": "Dice",
    "focal": "Focal",
    "tversky": "Tversky",
}


@dataclass(frozen=True)
class Spec:
    """What a form or a schema needs to know of one hyperparameter. Limits are inclusive."""

    label: str
    help: str
    type: type
    minimum: float | None = None
    maximum: float | None = None
    multiple_of: int | None = None
    choices: dict[str, str] | None = None
    unit: str = ""


def _parameter(label: str, help: str, type: type, **limits: Any) -> Any:
    return field(default=None, metadata={"spec": Spec(label, help, type, **limits)})


class ConfigErrors(ConfigError):  # noqa: N818 (several errors in one)
    """Everything that is wrong with a set of hyperparameters: `fields` is name → sentence."""

    def __init__(self, fields: dict[str, str]) -> None:
        self.fields = fields
        super().__init__("invalid_hyperparameters", " ".join(f"{name}: {text}" for name, text in fields.items()))


@dataclass(frozen=True)
class Hyperparameters:
    """What the user asked for. None: planned from the data. Raises ConfigErrors when a value is out of its limits."""

    architecture: str | None = _parameter(
        "Architecture",
        "The shape of the network. U-Net is a good first choice; the others trade speed for detail.",
        str,
        choices={name: item.label for name, item in ARCHITECTURES.items()},
    )
    encoder: str | None = _parameter(
        "Encoder",
        "The part that looks at the image. Bigger ones learn more from much data and take longer.",
        str,
        choices={name: name for name in ENCODERS},
    )
    encoder_weights: str | None = _parameter(
        "Start weights",
        "ImageNet weights help on colour photographs. They are downloaded at first use; without a connection the "
        "training starts from random weights and says so.",
        str,
        choices={"none": "Random", "imagenet": "ImageNet"},
    )
    epochs: int | None = _parameter(
        "Epochs",
        "How often the training goes through the data. Left out: as many as fit into the time budget.",
        int,
        minimum=1,
        maximum=10_000,
    )
    learning_rate: float | None = _parameter(
        "Learning rate",
        "How large each correction is. 0.001 suits most data; lower it when the loss jumps.",
        float,
        minimum=1e-7,
        maximum=1.0,
    )
    batch_size: int | None = _parameter(
        "Batch size",
        "How many patches are looked at for one correction. Larger needs more memory.",
        int,
        minimum=1,
        maximum=256,
    )
    patch_size: int | None = _parameter(
        "Patch size",
        "Side of the square that the network sees while it trains. Large enough to show what makes a structure what it is.",
        int,
        minimum=32,
        maximum=2048,
        multiple_of=32,
        unit="pixels",
    )
    augmentation: str | None = _parameter(
        "Augmentation",
        "Random changes of the images (flips, rotations, brightness), so that a small dataset teaches more.",
        str,
        choices=AUGMENTATIONS,
    )
    loss: str | None = _parameter(
        "Loss", "What the training makes small. Dice + cross-entropy suits most tasks.", str, choices=LOSSES
    )
    seed: int | None = _parameter(
        "Seed",
        "Start of all random numbers: the same seed gives the same split and start.",
        int,
        minimum=0,
        maximum=2**31 - 1,
    )
    validation_fraction: float | None = _parameter(
        "Validation share",
        "Share of the training cases that the network never learns from; the best weights are chosen on them.",
        float,
        minimum=0.05,
        maximum=0.5,
    )
    early_stopping_patience: int | None = _parameter(
        "Stop early after",
        "Stop when the validation Dice has not improved for this many epochs. 0: never.",
        int,
        minimum=0,
        maximum=1000,
        unit="epochs",
    )
    time_budget_seconds: int | None = _parameter(
        "Time budget",
        "How long the training may take, with its final evaluation. Learning rate and epochs fit themselves to it.",
        int,
        minimum=10,
        maximum=7 * 24 * 3600,
        unit="seconds",
    )

    def __post_init__(self) -> None:
        wrong = {name: problem for name, spec in specs().items() if (problem := _problem(getattr(self, name), spec))}
        if not wrong and self.architecture:
            architecture = ARCHITECTURES[self.architecture]
            if self.encoder and self.encoder not in architecture.encoders:
                choice = ", ".join(architecture.encoders)
                wrong["encoder"] = f"{architecture.label} cannot use {self.encoder}. Choose one of: {choice}."
            if self.patch_size and self.patch_size < architecture.minimum_size:
                wrong["patch_size"] = (
                    f"{architecture.label} needs patches of at least {architecture.minimum_size} pixels."
                )
        if wrong:
            raise ConfigErrors(wrong)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Hyperparameters:
        """Raises ConfigErrors for names that do not exist and values out of their limits."""
        unknown = {name: _unknown(name) for name in values if name not in specs()}
        known = {name: _to_number(value, specs()[name]) for name, value in values.items() if name in specs()}
        try:
            made = cls(**known)
        except ConfigErrors as error:
            raise ConfigErrors({**unknown, **error.fields}) from None
        if unknown:
            raise ConfigErrors(unknown)
        return made

    def to_dict(self) -> dict[str, Any]:
        """Only what was asked for."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def specs() -> dict[str, Spec]:
    """Name → Spec of every hyperparameter, in the order in which a form shows them."""
    return {item.name: item.metadata["spec"] for item in dataclasses.fields(Hyperparameters)}


def json_schema(encoders: list[str] | None = None) -> dict[str, Any]:
    """JSON Schema (2020-12) of the hyperparameters; `encoders` narrows the choice to what one architecture can use."""
    names = {str: "string", int: "integer", float: "number"}
    properties: dict[str, Any] = {}
    for name, spec in specs().items():
        entry: dict[str, Any] = {"type": names[spec.type], "title": spec.label, "description": spec.help}
        if spec.choices:
            entry["enum"] = encoders if name == "encoder" and encoders else list(spec.choices)
        if spec.minimum is not None:
            entry["minimum"] = spec.minimum
        if spec.maximum is not None:
            entry["maximum"] = spec.maximum
        if spec.multiple_of is not None:
            entry["multipleOf"] = spec.multiple_of
        properties[name] = entry
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _unknown(name: str) -> str:
    return f"There is no such hyperparameter. There are: {', '.join(specs())}."


def _to_number(value: Any, spec: Spec) -> Any:
    """2.0 for 2 and 1 for 1.0 are the same number in JSON; anything else stays as it is, to be refused."""
    if spec.type is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if spec.type is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _problem(value: Any, spec: Spec) -> str | None:
    if value is None:
        return None
    if type(value) is not spec.type:
        return f"{_shown(value)} is not {'text' if spec.type is str else 'a whole number' if spec.type is int else 'a number'}."
    if spec.choices and value not in spec.choices:
        return f"{_shown(value)} is not one of: {', '.join(spec.choices)}."
    if not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        return "It must be a finite number."
    if spec.minimum is not None and value < spec.minimum:
        return f"{value} is too small. The least is {spec.minimum:g}."
    if spec.maximum is not None and value > spec.maximum:
        return f"{value} is too large. The most is {spec.maximum:g}."
    if spec.multiple_of and value % spec.multiple_of:
        return f"{value} is not a multiple of {spec.multiple_of}."
    return None


def _shown(value: Any) -> str:
    return repr(value)[:80]
