"""The hyperparameters of a training, in one table: the planner, the form, the API's schema and the command line read it.

A new hyperparameter is an entry of `Hyperparameters` and its use. An entry with a default is planned by it; for the others
ml_core.planning.rules has a rule each.
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
    """Every value that a training uses."""

    configuration: str = entry(
        NETWORK,
        "Configuration",
        "How the network looks at volumes. Pictures are always 2D; 3D sees most and takes longest.",
        choices=CONFIGURATIONS,
    )
    architecture: str = entry(
        NETWORK,
        "Architecture",
        "The shape of the network. A plain U-Net is a good first choice without start weights; the others trade speed for "
        "detail.",
        choices={name: item.label for name, item in ARCHITECTURES.items()},
    )
    encoder: str = entry(
        NETWORK,
        "Encoder",
        "The part that looks at the image. Bigger ones learn more from much data and take longer; plain-16 starts with 16 "
        "features.",
        choices={name: name for name in ENCODERS},
        choice_groups=ENCODER_GROUPS,
    )
    encoder_weights: str = entry(
        NETWORK,
        "Start weights",
        "ImageNet weights help on colour photographs. They are downloaded at first use; without a connection the training "
        "starts from random weights and says so.",
        default="none",
        reason="Random: nothing has to be downloaded, and it suits medical images.",
        choices={"none": "Random", "imagenet": "ImageNet"},
    )
    deep_supervision: str = entry(
        NETWORK,
        "Deep supervision",
        "Coarser outputs learn too (plain U-Nets and DynUNet).",
        default="off",
        reason="It costs time in short trainings and helps only long ones.",
        choices=SWITCH,
    )
    warm_start: str = entry(
        NETWORK,
        "Warm start",
        "Number of an earlier model (in Python and on the command line: its package) whose weights the training starts from.",
        default="",
        reason="From random weights.",
    )
    spacing: str = entry(
        IMAGES,
        "Target spacing",
        "What images are resampled to before the network sees them, slices first: “2.5 0.8 0.8” in mm for volumes, “1.5 "
        "1.5” for pictures (in pixels where these have no spacing in mm).",
    )
    normalisation: str = entry(
        IMAGES,
        "Normalisation",
        "Scale intensities by the numbers of the whole dataset (CT: its units are fixed) or of each image.",
        choices={"image": "By each image", "ct": "By the whole dataset"},
    )
    patch_size: int = entry(
        IMAGES,
        "Patch size",
        "Side of the square that the network sees while it trains. Large enough to show what makes a structure what it is.",
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
        "How many patches are looked at for one correction. Larger needs more memory.",
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
        "What the training makes small. Dice + cross-entropy suits most tasks.",
        default="dice_ce",
        reason="Dice looks at overlap, cross-entropy keeps the training steady.",
        choices=LOSSES,
    )
    class_weights: str = entry(
        LEARNING,
        "Class weights",
        "Balanced: rare classes count more in the cross-entropy.",
        default="none",
        reason="Dice in the loss and the choice of patches already see to rare classes.",
        choices={"none": "Equal", "balanced": "Balanced"},
    )
    optimizer: str = entry(
        LEARNING,
        "Optimizer",
        "What moves the weights. Muon takes larger steps in all directions at once: fewer of them are needed, and each "
        "costs more.",
        choices=OPTIMIZERS,
    )
    learning_rate: float = entry(
        LEARNING,
        "Learning rate",
        "How large each correction is. 0.001 suits most data; lower it when the loss jumps.",
        minimum=1e-07,
        maximum=1.0,
    )
    weight_decay: float = entry(
        LEARNING,
        "Weight decay",
        "How strongly weights are pulled to zero.",
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
        "Longest gradient of one step. 0: not clipped.",
        default=5.0,
        reason="A single strange batch cannot throw the weights away.",
        minimum=0.0,
        maximum=1000.0,
    )
    weight_average: float = entry(
        LEARNING,
        "Weight average",
        "Decay of the moving average of the weights that is validated and kept. 0: the weights themselves.",
        default=0.99,
        reason="The average over the last steps is steadier than the weights themselves.",
        minimum=0.0,
        maximum=0.9999,
    )
    precision: str = entry(
        LEARNING, "Precision", "Of the multiplications while training.", choices={"bf16": "bfloat16", "fp32": "float32"}
    )
    torch_compile: str = entry(
        LEARNING,
        "Compile",
        "Let PyTorch turn the network into code for this machine first. It takes about a minute, and each step is shorter "
        "then.",
        choices=SWITCH,
    )
    seed: int = entry(
        LEARNING,
        "Seed",
        "Start of all random numbers: the same seed gives the same split, and on a CPU, with a fixed number of epochs, "
        "the same curve.",
        default=0,
        reason="The same seed gives the same split and start.",
        minimum=0,
        maximum=2**31 - 2,
    )
    time_budget_seconds: int | None = entry(
        TIME,
        "Time budget",
        "How long the training may take, with its final evaluation. Learning rate and epochs fit themselves to it.",
        minimum=10,
        maximum=7 * 24 * 3600,
        unit="seconds",
    )
    epochs: int | None = entry(
        TIME,
        "Epochs",
        "How often the training goes through the data. Left out: as many as fit into the time budget.",
        minimum=1,
        maximum=10000,
    )
    early_stopping_patience: int = entry(
        TIME,
        "Stop early after",
        "Stop when the validation Dice has not improved for this many epochs. 0: never.",
        default=0,
        reason="The learning rate falls to the end, and the last epochs are often the best.",
        minimum=0,
        maximum=1000,
        unit="epochs",
    )
    validation_fraction: float = entry(
        TIME,
        "Validation share",
        "Share of the training cases that the network never learns from; the best weights are chosen on them.",
        default=0.15,
        reason="A few cases are enough to choose the best weights by; the others are learnt from.",
        minimum=0.05,
        maximum=0.5,
    )
    test_fraction: float = entry(
        TIME,
        "Test share",
        "Share of the cases that is locked away for the final numbers, the same for every training. 0: none.",
        default=0.2,
        reason="A fifth is locked away where the data is enough for it (30 patients or files).",
        minimum=0.0,
        maximum=0.5,
    )
    folds: int = entry(
        TIME,
        "Folds",
        "Cross-validation: train one network per fold and let them answer together. 1: one network. Each gets its share "
        "of the time.",
        default=1,
        reason="One network. Folds let every case be validated on, and share the time.",
        minimum=1,
        maximum=10,
    )
    seeds: int = entry(
        TIME,
        "Seeds",
        "Train that many networks from different random starts on the same split and let them answer together.",
        default=1,
        reason="One network. More cost their share of the time and are a little steadier together.",
        minimum=1,
        maximum=10,
    )
    test_time_augmentation: str = entry(
        AFTER,
        "Mirroring at test time",
        "Predict mirrored copies too and average. Measured: only if it helps on the validation cases.",
        default="measured",
        reason="Used only if it helps on the validation cases.",
        choices={"measured": "Measured", "on": "On", "off": "Off"},
    )
    postprocessing: str = entry(
        AFTER,
        "Post-processing",
        "Keep the largest component, fill holes, drop specks. Measured: each only if it helps on the validation cases.",
        default="measured",
        reason="Each step is used only if it helps on the validation cases.",
        choices={"measured": "Measured", "off": "Off"},
    )

    def hyperparameters(self) -> dict[str, Value | None]:
        """Name → value, in the order of the table."""
        return {name: getattr(self, name) for name in specs()}


@cache
def specs() -> dict[str, Spec]:
    """Name → entry, in the order in which pages show them."""
    kinds = get_type_hints(Hyperparameters)
    plain = {name: next(iter(get_args(kind)), kind) for name, kind in kinds.items()}  # int of `int | None`
    return {item.name: replace(item.metadata["spec"], type=plain[item.name]) for item in fields(Hyperparameters)}


def groups() -> dict[str, dict[str, Spec]]:
    """Heading → its entries by name."""
    found: dict[str, dict[str, Spec]] = {}
    for name, spec in specs().items():
        found.setdefault(spec.group, {})[name] = spec
    return found


def json_schema(encoders: list[str] | None = None) -> dict[str, Any]:
    """JSON Schema (2020-12) of the hyperparameters; `encoders` narrows the choice to what one architecture can use."""
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
