"""What a training can be asked for. One dataclass is the source of the form, the API's checks and the JSON Schema."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from ml_core.errors import ConfigError
from ml_core.networks.catalogue import ARCHITECTURES
from ml_core.networks.encoders import ENCODERS

AUGMENTATIONS = {
    "none": "None",
    "intensity": "Intensity only",
    "light": "Light",
    "standard": "Standard",
    "strong": "Strong",
}
LOSSES = {
    "dice_ce": "Dice + cross-entropy",
    "ce": "Cross-entropy",
    "dice": "Dice",
    "focal": "Focal",
    "tversky": "Tversky",
    "boundary": "Dice + cross-entropy, borders count more",
}
OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon for kernels, AdamW for the rest"}
CONFIGURATIONS = {
    "2d": "2D: pictures, or volumes slice by slice",
    "2.5d": "2.5D: a slice with its neighbours",
    "3d": "3D: whole volumes in patches",
}
MOST_MEMBERS = 20  # networks that answer together
SWITCH = {"on": "On", "off": "Off"}


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

    configuration: str | None = _parameter(
        "Configuration",
        "How the network looks at volumes. Pictures are always 2D; 3D sees most and takes longest.",
        str,
        choices=CONFIGURATIONS,
    )
    architecture: str | None = _parameter(
        "Architecture",
        "The shape of the network. A plain U-Net is a good first choice without start weights; the others trade speed for detail.",
        str,
        choices={name: item.label for name, item in ARCHITECTURES.items()},
    )
    encoder: str | None = _parameter(
        "Encoder",
        "The part that looks at the image. Bigger ones learn more from much data and take longer; plain-16 starts with 16 features.",
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
        multiple_of=16,
        unit="pixels",
    )
    patch_depth: int | None = _parameter(
        "Patch depth",
        "3D: slices in a patch, a multiple of 8. 2.5D: slices seen at once, an odd number. 2D: 1.",
        int,
        minimum=1,
        maximum=512,
        unit="slices",
    )
    spacing: str | None = _parameter(
        "Target spacing",
        "What images are resampled to before the network sees them, slices first: “2.5 0.8 0.8” in mm for volumes, “1.5 1.5” for "
        "pictures (in pixels where these have no spacing in mm).",
        str,
    )
    normalisation: str | None = _parameter(
        "Normalisation",
        "Scale intensities by the numbers of the whole dataset (CT: its units are fixed) or of each image.",
        str,
        choices={"image": "By each image", "ct": "By the whole dataset"},
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
    class_weights: str | None = _parameter(
        "Class weights",
        "Balanced: rare classes count more in the cross-entropy.",
        str,
        choices={"none": "Equal", "balanced": "Balanced"},
    )
    foreground_share: float | None = _parameter(
        "Foreground share",
        "Share of the patches that are placed on a class drawn at random, so that rare classes are seen often.",
        float,
        minimum=0.0,
        maximum=1.0,
    )
    deep_supervision: str | None = _parameter(
        "Deep supervision",
        "Coarser outputs learn too (plain U-Nets and DynUNet).",
        str,
        choices=SWITCH,
    )
    weight_average: float | None = _parameter(
        "Weight average",
        "Decay of the moving average of the weights that is validated and kept. 0: the weights themselves.",
        float,
        minimum=0.0,
        maximum=0.9999,
    )
    optimizer: str | None = _parameter(
        "Optimizer",
        "What moves the weights. Muon takes larger steps in all directions at once: fewer of them are needed, and each costs more.",
        str,
        choices=OPTIMIZERS,
    )
    weight_decay: float | None = _parameter(
        "Weight decay", "How strongly weights are pulled to zero.", float, minimum=0.0, maximum=1.0
    )
    warm_up_steps: int | None = _parameter(
        "Warm-up", "Steps over which the learning rate rises from zero.", int, minimum=0, maximum=10_000, unit="steps"
    )
    clip_norm: float | None = _parameter(
        "Gradient clipping", "Longest gradient of one step. 0: not clipped.", float, minimum=0.0, maximum=1000.0
    )
    precision: str | None = _parameter(
        "Precision",
        "Of the multiplications while training.",
        str,
        choices={"bf16": "bfloat16", "fp32": "float32"},
    )
    torch_compile: str | None = _parameter(
        "Compile",
        "Let PyTorch turn the network into code for this machine first. It takes about a minute, and each step is shorter then.",
        str,
        choices=SWITCH,
    )
    seed: int | None = _parameter(
        "Seed",
        "Start of all random numbers: the same seed gives the same split, and on a CPU, with a fixed number of epochs, the same curve.",
        int,
        minimum=0,
        maximum=2**31 - 2,
    )
    folds: int | None = _parameter(
        "Folds",
        "Cross-validation: train one network per fold and let them answer together. 1: one network. Each gets its share of the time.",
        int,
        minimum=1,
        maximum=10,
    )
    seeds: int | None = _parameter(
        "Seeds",
        "Train that many networks from different random starts on the same split and let them answer together.",
        int,
        minimum=1,
        maximum=10,
    )
    validation_fraction: float | None = _parameter(
        "Validation share",
        "Share of the training cases that the network never learns from; the best weights are chosen on them.",
        float,
        minimum=0.05,
        maximum=0.5,
    )
    test_fraction: float | None = _parameter(
        "Test share",
        "Share of the cases that is locked away for the final numbers, the same for every training. 0: none.",
        float,
        minimum=0.0,
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

    test_time_augmentation: str | None = _parameter(
        "Mirroring at test time",
        "Predict mirrored copies too and average. Measured: only if it helps on the validation cases.",
        str,
        choices={"measured": "Measured", "on": "On", "off": "Off"},
    )
    postprocessing: str | None = _parameter(
        "Post-processing",
        "Keep the largest component, fill holes, drop specks. Measured: each only if it helps on the validation cases.",
        str,
        choices={"measured": "Measured", "off": "Off"},
    )
    warm_start: str | None = _parameter(
        "Warm start",
        "Number of an earlier model (in Python and on the command line: its package) whose weights the training starts from.",
        str,
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
            if self.configuration and (self.configuration == "3d") != (architecture.dimensions == 3):
                wrong["configuration"] = f"{architecture.label} is a {architecture.dimensions}D network."
        if not wrong and (self.folds or 1) * (self.seeds or 1) > MOST_MEMBERS:
            wrong["seeds"] = (
                f"{self.folds} folds times {self.seeds} seeds are too many networks; at most {MOST_MEMBERS}."
            )
        if not wrong and self.spacing is not None:
            wrong |= _spacing_problem(self.spacing)
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


def parse_spacing(text: str) -> list[float]:
    """ "2.5 0.8 0.8" → [2.5, 0.8, 0.8]. Raises ValueError."""
    return [float(part) for part in text.replace(",", " ").replace("x", " ").split()]


def _spacing_problem(text: str) -> dict[str, str]:
    try:
        steps = parse_spacing(text[:100])
    except ValueError:
        steps = []
    if len(steps) in (2, 3) and all(math.isfinite(step) and 1e-3 <= step <= 1e3 for step in steps):
        return {}
    return {"spacing": "Give two or three numbers from 0.001 to 1000 with blanks between, such as “2.5 0.8 0.8”."}


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
