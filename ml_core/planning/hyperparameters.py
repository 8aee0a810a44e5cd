"""The table of hyperparameters of a training. The planner, the form, the API's schema and the command line all read it.

To add a hyperparameter, add an entry to `Hyperparameters` and use it. The planner takes the default of an entry, or a
rule of ml_core.planning.rules for an entry without one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, get_args, get_type_hints

from ml_core.documents import Document
from ml_core.networks.catalogue import ARCHITECTURES
from ml_core.networks.encoders import ENCODER_GROUPS, ENCODERS
from ml_core.planning.spec import AFTER, IMAGES, LEARNING, NETWORK, TIME, Spec, Value, entry

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
SWITCH = {"on": "On", "off": "Off"}


@dataclass(frozen=True, kw_only=True)
class Hyperparameters(Document):
    """The value of every hyperparameter of a training."""

    configuration: str = entry(
        NETWORK,
        "Configuration",
        "How the network sees a volume. Pictures are always 2D. A 3D network sees the most and takes the longest.",
        choices=CONFIGURATIONS,
    )
    architecture: str = entry(
        NETWORK,
        "Architecture",
        "The shape of the network. A plain U-Net is a good first choice without start weights; the others trade speed "
        "for detail.",
        choices={name: item.label for name, item in ARCHITECTURES.items()},
    )
    encoder: str = entry(
        NETWORK,
        "Encoder",
        "The part of the network that analyses the image. A larger one learns more from much data and takes longer. "
        "plain-16 starts with 16 features.",
        choices={name: name for name in ENCODERS},
        choice_groups=ENCODER_GROUPS,
    )
    encoder_weights: str = entry(
        NETWORK,
        "Start weights",
        "ImageNet weights help on colour photographs. They are downloaded at first use; without a connection the "
        "training starts from random weights and says so.",
        default="none",
        reason="Random weights suit medical images and need no download.",
        choices={"none": "Random", "imagenet": "ImageNet"},
    )
    deep_supervision: str = entry(
        NETWORK,
        "Deep supervision",
        "Train the coarser outputs of the network too (plain U-Nets and DynUNet only).",
        default="off",
        reason="It helps only long trainings, and costs time in short ones.",
        choices=SWITCH,
    )
    warm_start: str = entry(
        NETWORK,
        "Warm start",
        "The model whose weights the training starts from: its number (in Python and the command line, its package).",
        default="",
        reason="The training starts from random weights.",
    )
    spacing: str = entry(
        IMAGES,
        "Target spacing",
        "The spacing that images are resampled to, slices first: “2.5 0.8 0.8” in mm for volumes, “1.5 1.5” for "
        "pictures (in pixels if the pictures have no spacing in mm).",
    )
    normalisation: str = entry(
        IMAGES,
        "Normalisation",
        "Scale intensities by the statistics of each image, or of the whole dataset (for CT, whose units are fixed).",
        choices={"image": "By each image", "ct": "By the whole dataset"},
    )
    patch_size: int = entry(
        IMAGES,
        "Patch size",
        "Side of the square that the network sees while it trains. Choose it large enough to recognise a structure by "
        "its surroundings.",
        minimum=32,
        maximum=2048,
        multiple_of=16,
        unit="pixels",
    )
    patch_depth: int = entry(
        IMAGES,
        "Patch depth",
        "3D: slices in a patch, a multiple of 8. 2.5D: slices seen at once, an odd number. 2D: 1.",
        minimum=1,
        maximum=512,
        unit="slices",
    )
    batch_size: int = entry(
        IMAGES,
        "Batch size",
        "How many patches the network sees in one step. A larger batch needs more memory.",
        minimum=1,
        maximum=256,
    )
    foreground_share: float = entry(
        IMAGES,
        "Foreground share",
        "Share of the patches that are placed on a class drawn at random, so that rare classes are seen often.",
        minimum=0.0,
        maximum=1.0,
    )
    augmentation: str = entry(
        IMAGES,
        "Augmentation",
        "Random changes of the images (flips, rotations, brightness), so that a small dataset teaches more.",
        choices=AUGMENTATIONS,
    )
    loss: str = entry(
        LEARNING,
        "Loss",
        "The error that the training minimises. Dice + cross-entropy suits most datasets.",
        default="dice_ce",
        reason="Dice measures the overlap, and cross-entropy keeps the training steady.",
        choices=LOSSES,
    )
    class_weights: str = entry(
        LEARNING,
        "Class weights",
        "With “Balanced”, rare classes count more in the cross-entropy.",
        default="none",
        reason="The Dice loss and the choice of patches already give rare classes enough weight.",
        choices={"none": "Equal", "balanced": "Balanced"},
    )
    optimizer: str = entry(
        LEARNING,
        "Optimizer",
        "The method that updates the weights. Muon needs fewer steps than AdamW, and each step takes longer.",
        choices=OPTIMIZERS,
    )
    learning_rate: float = entry(
        LEARNING,
        "Learning rate",
        "How far each step changes the weights. 0.001 suits most data; lower it if the loss jumps.",
        minimum=1e-07,
        maximum=1.0,
    )
    weight_decay: float = entry(
        LEARNING,
        "Weight decay",
        "How strongly weights are pulled towards zero.",
        default=1e-4,
        reason="A little keeps the weights small.",
        minimum=0.0,
        maximum=1.0,
    )
    warm_up_steps: int = entry(
        LEARNING,
        "Warm-up",
        "Steps over which the learning rate rises from zero.",
        default=20,
        reason="Adam's statistics need some steps before they can be trusted.",
        minimum=0,
        maximum=10000,
        unit="steps",
    )
    clip_norm: float = entry(
        LEARNING,
        "Gradient clipping",
        "Longer gradients are shortened to this length. 0: no clipping.",
        default=5.0,
        reason="A single unusual batch cannot spoil the weights.",
        minimum=0.0,
        maximum=1000.0,
    )
    weight_average: float = entry(
        LEARNING,
        "Weight average",
        "Decay of the moving average of the weights. The average is validated and kept. 0: the weights themselves are "
        "kept.",
        default=0.99,
        reason="The average over the last steps is steadier than the weights themselves.",
        minimum=0.0,
        maximum=0.9999,
    )
    precision: str = entry(
        LEARNING,
        "Precision",
        "The number format of the multiplications in training.",
        choices={"bf16": "bfloat16", "fp32": "float32"},
    )
    torch_compile: str = entry(
        LEARNING,
        "Compile",
        "Let PyTorch compile the network for this machine first. This takes about a minute and makes each step "
        "shorter.",
        choices=SWITCH,
    )
    seed: int = entry(
        LEARNING,
        "Seed",
        "Where all random numbers start. The same seed gives the same split and, on a CPU with a fixed number of "
        "epochs, the same curve.",
        default=0,
        reason="The same seed gives the same split and the same start weights.",
        minimum=0,
        maximum=2**31 - 2,
    )
    time_budget_seconds: int | None = entry(
        TIME,
        "Time budget",
        "How long the training may take, its final evaluation included. The learning rate and the epochs adapt to it.",
        minimum=10,
        maximum=7 * 24 * 3600,
        unit="seconds",
    )
    epochs: int | None = entry(
        TIME,
        "Epochs",
        "How often the training goes through the data. If left out, as many epochs as fit into the time budget.",
        minimum=1,
        maximum=10000,
    )
    early_stopping_patience: int = entry(
        TIME,
        "Stop early after",
        "Stop when the validation Dice has not improved for this many epochs. 0: never.",
        default=0,
        reason="The learning rate falls until the end, and the last epochs are often the best.",
        minimum=0,
        maximum=1000,
        unit="epochs",
    )
    validation_fraction: float = entry(
        TIME,
        "Validation share",
        "Share of the training cases that the network never learns from. The best weights are chosen by them.",
        default=0.15,
        reason="A few cases are enough to choose the best weights by, and the network learns from all others.",
        minimum=0.05,
        maximum=0.5,
    )
    test_fraction: float = entry(
        TIME,
        "Test share",
        "Share of the cases that is used for the final metrics only. It is the same for every training. 0: none.",
        default=0.2,
        reason="A fifth of the cases is kept for the final metrics if there are 30 patients or files.",
        minimum=0.0,
        maximum=0.5,
    )
    folds: int = entry(
        TIME,
        "Folds",
        "Cross-validation: train one network per fold and average their predictions. The networks share the time. 1: "
        "one network.",
        default=1,
        reason="One network gets the whole time. Folds validate on every case, but their networks share the time.",
        minimum=1,
        maximum=10,
    )
    seeds: int = entry(
        TIME,
        "Seeds",
        "Train this many networks from different random starts on the same split and average their predictions.",
        default=1,
        reason="One network gets the whole time. Several are a little more accurate together, but share the time.",
        minimum=1,
        maximum=10,
    )
    test_time_augmentation: str = entry(
        AFTER,
        "Mirroring at test time",
        "Predict mirrored copies of an image too, and average. With “Measured”, only if it helps on the validation "
        "cases.",
        default="measured",
        reason="Mirroring is used only if it helps on the validation cases.",
        choices={"measured": "Measured", "on": "On", "off": "Off"},
    )
    postprocessing: str = entry(
        AFTER,
        "Post-processing",
        "Keep the largest component, fill holes, drop specks. With “Measured”, each step only if it helps on the "
        "validation cases.",
        default="measured",
        reason="Each step is used only if it helps on the validation cases.",
        choices={"measured": "Measured", "off": "Off"},
    )

    def hyperparameters(self) -> dict[str, Value | None]:
        """Return the value of each hyperparameter by name, in the order of the table."""
        return {name: getattr(self, name) for name in specs()}


@cache
def specs() -> dict[str, Spec]:
    """Return the entry of each hyperparameter by name, in the order in which pages show them."""
    kinds = get_type_hints(Hyperparameters)
    # For an annotation such as `int | None`, the type of a value is int.
    plain = {name: next(iter(get_args(kind)), kind) for name, kind in kinds.items()}
    return {item.name: replace(item.metadata["spec"], type=plain[item.name]) for item in fields(Hyperparameters)}


def groups() -> dict[str, dict[str, Spec]]:
    """Return the entries by heading and name."""
    by_heading: dict[str, dict[str, Spec]] = {}
    for name, spec in specs().items():
        by_heading.setdefault(spec.group, {})[name] = spec
    return by_heading


def json_schema(encoders: list[str] | None = None) -> dict[str, Any]:
    """Return a JSON Schema (2020-12) of the hyperparameters.

    `encoders` limits the encoder to those of one architecture.
    """
    properties = {name: _json_schema(spec) for name, spec in specs().items()}
    if encoders:
        properties["encoder"] |= {"enum": encoders}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _json_schema(spec: Spec) -> dict[str, object]:
    limits = {
        "enum": list(spec.choices) if spec.choices else None,
        "minimum": spec.minimum,
        "maximum": spec.maximum,
        "multipleOf": spec.multiple_of,
    }
    kind = {str: "string", int: "integer", float: "number"}[spec.type]
    given = {name: limit for name, limit in limits.items() if limit is not None}
    return {"type": kind, "title": spec.label, "description": spec.help, **given}
