"""From a dataset's fingerprint, the user's wishes and the machine to a plan, with a sentence of reason for each choice."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any

from ml_core.architectures import ARCHITECTURES
from ml_core.config import Hyperparameters, specs
from ml_core.preprocessing import Preprocessing

DEFAULT_SECONDS = 300


@dataclass(frozen=True)
class Machine:
    """Where the training runs."""

    cuda: bool
    cpus: int
    bf16: bool

    @classmethod
    def here(cls) -> Machine:
        import torch

        cuda = torch.cuda.is_available()
        bf16 = torch.cuda.is_bf16_supported() if cuda else torch.cpu._is_avx512_bf16_supported()
        return cls(cuda=cuda, cpus=os.cpu_count() or 1, bf16=bf16)


@dataclass(frozen=True)
class Plan:
    """Everything that a training uses. `epochs` None: as many as fit into `time_budget_seconds`; one of the two is set.

    class_values: label values in the order of the network's outputs. patch_size in pixels. precision: "bf16" or "fp32".
    """

    architecture: str
    encoder: str
    encoder_weights: str
    epochs: int | None
    learning_rate: float
    batch_size: int
    patch_size: int
    augmentation: str
    loss: str
    seed: int
    validation_fraction: float
    early_stopping_patience: int
    time_budget_seconds: int | None
    preprocessing: Preprocessing
    class_values: list[int]
    class_names: list[str]
    class_colors: list[str]
    dimensions: int
    precision: str
    fingerprint: dict[str, Any]
    reasons: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        return cls(**{**values, "preprocessing": Preprocessing(**values["preprocessing"])})

    def hyperparameters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in specs()}


def make_plan(
    wanted: Hyperparameters,
    fingerprint: dict[str, Any],
    classes: list[dict[str, Any]],
    machine: Machine,
    *,
    default_seconds: int = DEFAULT_SECONDS,
) -> Plan:
    """`classes`: [{value, name, color}]; the first in order of value is background."""
    reasons: dict[str, str] = {}

    def choose(name: str, planned: Any, reason: str) -> Any:
        asked = getattr(wanted, name)
        reasons[name] = "You chose it." if asked is not None else reason
        return planned if asked is None else asked

    preprocessing, dimensions = _preprocessing(fingerprint, reasons), fingerprint["dimensions"]
    in_plane = [
        size
        for axis, size in enumerate(fingerprint["shape"]["median"])
        if dimensions == 2 or axis != preprocessing.slice_axis
    ]
    architecture = choose("architecture", "unet", "A U-Net is hard to beat on medical images of most kinds.")
    encoders = ARCHITECTURES[architecture].encoders
    small, large = ("resnet18", "resnet34")
    encoder = choose(
        "encoder",
        large if machine.cuda else small,
        "ResNet-34 has the strength that a GPU can feed."
        if machine.cuda
        else "ResNet-18 sees the most images a minute on a CPU.",
    )
    assert encoder in encoders
    patch = choose("patch_size", *_patch_size(in_plane, ARCHITECTURES[architecture].minimum_size, machine))
    batch = choose(
        "batch_size",
        16 if machine.cuda else max(2, min(8, 8 * 256**2 // patch**2)),
        "Enough patches for a steady correction, few enough for the memory of this machine.",
    )
    epochs = wanted.epochs
    reasons["epochs"] = "You chose it." if epochs else "As many as fit into the time budget."
    budget = wanted.time_budget_seconds
    if epochs is None and budget is None:
        budget = default_seconds
    reasons["time_budget_seconds"] = (
        "You chose it."
        if wanted.time_budget_seconds
        else "No limit, since you chose the number of epochs."
        if budget is None
        else f"{budget} seconds are enough for a good first model on most data."
    )
    reasons["precision"] = (
        "bfloat16 is quicker here and as exact where it counts."
        if machine.bf16
        else "This machine has no fast bfloat16."
    )
    return Plan(
        architecture=architecture,
        encoder=encoder,
        encoder_weights=choose(
            "encoder_weights", "none", "Random: nothing has to be downloaded, and it suits medical images."
        ),
        epochs=epochs,
        learning_rate=choose("learning_rate", 1e-3, "AdamW with warm-up and cosine decay learns well from 0.001."),
        batch_size=batch,
        patch_size=patch,
        augmentation=choose(
            "augmentation",
            "standard",
            "Flips, rotations, scale and brightness make a small dataset go further.",
        ),
        loss=choose("loss", "dice_ce", "Dice looks at overlap, cross-entropy keeps the training steady."),
        seed=choose("seed", 0, "The same seed gives the same split and start."),
        validation_fraction=choose("validation_fraction", 0.2, "A fifth is enough to choose the best weights by."),
        early_stopping_patience=choose(
            "early_stopping_patience",
            0,
            "The learning rate falls to the end, and the last epochs are often the best.",
        ),
        time_budget_seconds=budget,
        preprocessing=preprocessing,
        class_values=[item["value"] for item in classes],
        class_names=[item["name"] for item in classes],
        class_colors=[item["color"] for item in classes],
        dimensions=dimensions,
        precision="bf16" if machine.bf16 else "fp32",
        fingerprint=fingerprint,
        reasons=reasons,
    )


def _preprocessing(fingerprint: dict[str, Any], reasons: dict[str, str]) -> Preprocessing:
    axis = 0
    if fingerprint["dimensions"] == 3:
        spacing = fingerprint["spacing"]["median"] if fingerprint["spacing"] else [1.0, 1.0, 1.0]
        axis = max(range(3), key=lambda item: (round(spacing[item], 3), -item))
        name = ("axial", "coronal", "sagittal")[axis]
        reasons["dimensions"] = f"Volumes are trained slice by slice along their finest plane (the {name} one)."
    else:
        reasons["dimensions"] = "The images are pictures, so the network is 2D."
    if fingerprint["modality"] == "CT":
        numbers = fingerprint["foreground_intensity"]
        reasons["normalisation"] = (
            "CT has fixed units, so all images are clipped and scaled by the numbers of the whole dataset."
        )
        return Preprocessing(
            channels=fingerprint["channels"],
            normalisation="ct",
            low=numbers["p005"],
            high=numbers["p995"],
            mean=numbers["mean"],
            std=numbers["std"],
            slice_axis=axis,
        )
    reasons["normalisation"] = "Each image is scaled by its own mean and spread, since its units are not fixed."
    return Preprocessing(channels=fingerprint["channels"], normalisation="image", slice_axis=axis)


def _patch_size(in_plane: list[float], least: int, machine: Machine) -> tuple[int, str]:
    largest = 512 if machine.cuda else 256
    size = max(least, min(largest, -(-int(max(in_plane)) // 32) * 32))
    if size < largest:
        return size, "The whole image fits into one patch."
    return size, f"{size} pixels show a good part of an image and let many steps fit into the time."
