"""From a dataset's fingerprint, the user's wishes and the machine to a plan, with a sentence of reason for each choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ml_core.dataset.fingerprint import Fingerprint
from ml_core.errors import ConfigError
from ml_core.networks.architecture import Architecture
from ml_core.networks.catalogue import ARCHITECTURES, network_arguments
from ml_core.planning.budget import DEFAULT_SECONDS
from ml_core.planning.choosing import Chooser
from ml_core.planning.grid import choose_preprocessing, shape_on_grid, spacing_of
from ml_core.planning.hyperparameters import CONFIGURATIONS, ConfigErrors, Hyperparameters
from ml_core.planning.plan import FLAT, Machine, Plan

SHORT = 900  # seconds; on a CPU every image is seen some hundred times at most
FEW_EPOCHS, FEW_SECONDS = 20, 60  # below that Muon's slow start costs more than it brings
LONG = 600  # seconds; a training that has time for a minute of compiling
MOST_WEIGHT = 10.0  # of a rare class, as a multiple of the commonest one's
RARE = 0.05  # share of the pixels below which a class is drawn more often


def make_plan(
    wanted: Hyperparameters,
    fingerprint: Fingerprint,
    classes: list[dict[str, Any]],
    machine: Machine,
    *,
    default_seconds: int = DEFAULT_SECONDS,
) -> Plan:
    """`classes`: [{value, name, color}]; the first in order of value is background. Raises ConfigErrors where wishes do not fit."""
    choose = Chooser(wanted)
    configuration = choose("configuration", *_configuration(wanted, fingerprint, machine))
    if fingerprint.dimensions == 2 and configuration != "2d":
        raise ConfigErrors({"configuration": f"These are pictures; {CONFIGURATIONS[configuration]} needs volumes."})
    preprocessing = choose_preprocessing(choose, fingerprint, configuration, machine)
    shape = shape_on_grid(fingerprint, preprocessing)
    architecture = choose("architecture", *_architecture(configuration, wanted.encoder))
    described = ARCHITECTURES[architecture]
    if (described.dimensions == 3) != (configuration == "3d"):
        text = f"{described.label} is a {described.dimensions}D network and does not fit the configuration {configuration}."
        raise ConfigErrors({"architecture": f"{text} Choose another one, or another configuration."})
    encoder = choose("encoder", *_encoder(architecture, machine))
    if encoder not in described.encoders:
        text = f"{described.label} cannot use {encoder}. Choose one of: {', '.join(described.encoders)}."
        raise ConfigErrors({"encoder": text})
    size = choose("patch_size", *_patch_size(shape, described.minimum_size, configuration, machine))
    depth = choose("patch_depth", *_patch_depth(shape, configuration, machine, described.minimum_size))
    deep = choose("deep_supervision", *_deep_supervision(architecture, configuration))
    patch = (depth, size, size) if configuration == "3d" else (size, size)
    try:
        network = network_arguments(
            architecture,
            encoder=encoder,
            patch=patch,
            spacing=tuple(preprocessing.spacing) if preprocessing.spacing and configuration == "3d" else None,
            deep_supervision=deep == "on",
        )
    except ConfigError as error:  # the patch does not fit the network
        raise ConfigErrors({"patch_size": str(error)}) from None
    _check_patch(patch, described.multiple(network), configuration, depth)
    batch = choose("batch_size", *_batch_size(patch, machine))
    epochs, budget = _duration(wanted, choose.reasons, default_seconds)
    shares = [item.share for item in fingerprint.classes]
    rare = min(shares, default=1.0) < RARE
    weights = choose("class_weights", "none", "Dice in the loss and the choice of patches already see to rare classes.")
    return Plan(
        configuration=configuration,
        architecture=architecture,
        encoder=encoder,
        encoder_weights=choose(
            "encoder_weights", "none", "Random: nothing has to be downloaded, and it suits medical images."
        ),
        network=network,
        epochs=epochs,
        time_budget_seconds=budget,
        learning_rate=choose("learning_rate", *described.learning_rate),
        optimizer=choose("optimizer", *_optimizer(described, machine, epochs, budget)),
        weight_decay=choose("weight_decay", 1e-4, "A little keeps the weights small."),
        warm_up_steps=choose("warm_up_steps", 20, "Adam's statistics need some steps before they can be trusted."),
        clip_norm=choose("clip_norm", 5.0, "A single strange batch cannot throw the weights away."),
        weight_average=choose(
            "weight_average", 0.99, "The average over the last steps is steadier than the weights themselves."
        ),
        deep_supervision=deep,
        batch_size=batch,
        patch_size=size,
        patch_depth=depth,
        spacing=" ".join(f"{step:g}" for step in preprocessing.spacing or []),
        normalisation=preprocessing.normalisation,
        foreground_share=choose(
            "foreground_share",
            0.5 if rare else 0.33,
            f"A class covers less than {RARE:.0%} of the pixels, so half of the patches are placed on a class drawn evenly."
            if rare
            else "A third of the patches is placed on a class drawn evenly, so that none is seen too seldom.",
        ),
        augmentation=choose("augmentation", *_augmentation(budget, machine, fingerprint)),
        loss=choose("loss", "dice_ce", "Dice looks at overlap, cross-entropy keeps the training steady."),
        class_weights=weights,
        balanced_weights=balanced_weights(shares) if weights == "balanced" else [],
        seed=choose("seed", 0, "The same seed gives the same split and start."),
        seeds=choose("seeds", 1, "One network. More cost their share of the time and are a little steadier together."),
        folds=choose("folds", 1, "One network. Folds let every case be validated on, and share the time."),
        validation_fraction=choose(
            "validation_fraction",
            0.15,
            "A few cases are enough to choose the best weights by; the others are learnt from.",
        ),
        test_fraction=choose(
            "test_fraction", 0.2, "A fifth is locked away where the data is enough for it (30 patients or files)."
        ),
        early_stopping_patience=choose(
            "early_stopping_patience", 0, "The learning rate falls to the end, and the last epochs are often the best."
        ),
        test_time_augmentation=choose(
            "test_time_augmentation", "measured", "Used only if it helps on the validation cases."
        ),
        postprocessing=choose(
            "postprocessing", "measured", "Each step is used only if it helps on the validation cases."
        ),
        warm_start=choose("warm_start", "", "From random weights."),
        precision=choose(
            "precision",
            "bf16" if machine.bf16 else "fp32",
            "bfloat16 is quicker here and as exact where it counts."
            if machine.bf16
            else "This machine has no fast bfloat16.",
        ),
        torch_compile=choose("torch_compile", *_torch_compile(machine, budget)),
        preprocessing=preprocessing,
        class_values=[item["value"] for item in classes],
        class_names=[item["name"] for item in classes],
        class_colors=[item["color"] for item in classes],
        dimensions=fingerprint.dimensions,
        fingerprint=fingerprint,
        reasons=choose.reasons,
    )


def _configuration(wanted: Hyperparameters, fingerprint: Fingerprint, machine: Machine) -> tuple[str, str]:
    if fingerprint.dimensions == 2:
        return "2d", "The images are pictures, so the network is 2D."
    if wanted.architecture:
        three = ARCHITECTURES[wanted.architecture].dimensions == 3
        return ("3d" if three else "2d"), "It follows from the architecture that you chose."
    spacing = spacing_of(fingerprint)
    finest, coarsest = min(spacing), max(spacing)
    if coarsest >= FLAT * finest:
        text = f"Slices lie {coarsest / finest:.1f} times further apart than pixels, so a slice with its neighbours says most."
        return "2.5d", text
    if min(fingerprint.shape.median) < 16:
        return "2.5d", "There are few slices, so each is seen with its neighbours."
    return "3d", "The volumes are about as fine in every direction, so the network looks in all three."


def _architecture(configuration: str, encoder: str | None) -> tuple[str, str]:
    """The best for most data among those that can use the encoder that the user chose."""
    dimensions = 3 if configuration == "3d" else 2
    for name, reason in (
        ("plain-unet-3d", "A plain 3D U-Net with few, well-fed features learns most a minute."),
        ("plain-unet", "A plain U-Net in nnU-Net’s shape learns most a minute from random weights."),
        ("unet", "A U-Net is hard to beat on medical images of most kinds."),
    ):
        item = ARCHITECTURES[name]
        if item.dimensions == dimensions and (encoder is None or encoder in item.encoders):
            return name, reason
    fitting = [item for item in ARCHITECTURES.values() if item.dimensions == dimensions and encoder in item.encoders]
    return (fitting[0].name if fitting else "unet"), "The first that can use the encoder that you chose."


def _encoder(architecture: str, machine: Machine) -> tuple[str, str]:
    encoders = ARCHITECTURES[architecture].encoders
    for name in ("resnet34", "plain-32") if machine.cuda else ("resnet18", "plain-16"):
        if name in encoders:
            return (
                name,
                f"{name} has the strength that a GPU can feed."
                if machine.cuda
                else f"{name} sees many images a minute on a CPU.",
            )
    return encoders[0], "The first that this architecture can use."


def _patch_size(shape: list[float], least: int, configuration: str, machine: Machine) -> tuple[int, str]:
    if configuration == "3d":
        largest, step = (128, 16) if machine.cuda else (64, 16)
    else:
        largest, step = (512, 32) if machine.cuda else (256, 32)
    longest = -(-int(max(shape[-2:])) // step) * step
    size = max(least, min(longest, largest + largest // 4 if longest <= largest + largest // 4 else largest))
    if size >= longest:
        return size, "The whole image fits into one patch."
    return size, f"{size} pixels show a good part of an image and let many steps fit into the time."


def _patch_depth(shape: list[float], configuration: str, machine: Machine, least: int) -> tuple[int, str]:
    if configuration == "2d":
        return 1, "One slice at a time."
    if configuration == "2.5d":
        return 3, "Each slice is seen with the one before and the one after."
    largest = 128 if machine.cuda else 48
    depth = max(least, min(largest, -(-int(shape[0]) // 16) * 16))
    return depth, f"{depth} slices in a patch."


def _optimizer(architecture: Architecture, machine: Machine, epochs: int | None, budget: int | None) -> tuple[str, str]:
    if (epochs or FEW_EPOCHS) < FEW_EPOCHS or (budget or FEW_SECONDS) < FEW_SECONDS:
        return "adamw", "AdamW learns more than Muon in the first steps, and the training is not much longer."
    # Muon multiplies matrices in bfloat16, which a machine without it does many times slower.
    if architecture.suits_muon and machine.bf16:
        return "muon", "Muon learns more in each step than AdamW, and this machine takes its steps quickly."
    return "adamw", "AdamW is steady and its steps cost little."


def _augmentation(budget: int | None, machine: Machine, fingerprint: Fingerprint) -> tuple[str, str]:
    if budget is None or budget > SHORT or machine.cuda:
        return "standard", "Flips, rotations, scale and brightness make a small dataset go further."
    if fingerprint.modality == "CT":
        return (
            "none",
            "CT numbers mean something and bodies lie in scanners in one way: a short training learns them as they are.",
        )
    if fingerprint.dimensions == 3 or "raster" not in fingerprint.families:
        text = (
            "Bodies lie in scanners in one way, and a short training learns them quickest so: only their light changes."
        )
        return "intensity", text
    pose = fingerprint.pose
    if pose and pose.lie_in_one_way:
        text = (
            f"The images lie in one way (as they lie they correlate by {pose.alike:.2f}, turned by {pose.turned:.2f}), and a "
            "short training learns them quickest so: only their light changes."
        )
        return "intensity", text
    text = "In a short training, bending and turning cost more than they teach: flips, quarter turns and other light."
    return "light", text


def _deep_supervision(architecture: str, configuration: str) -> tuple[str, str]:
    return "off", "It costs time in short trainings and helps only long ones."


def _torch_compile(machine: Machine, budget: int | None) -> tuple[str, str]:
    if not machine.cuda:
        return "off", "On a CPU the shorter steps seldom make up for the minute that it takes."
    if (budget or LONG) < LONG:
        return "off", "It takes about a minute, too much of this time budget."
    return "on", "On a GPU the steps get shorter, and the training is long enough for the minute that it takes."


def _check_patch(patch: tuple[int, ...], multiple: tuple[int, ...], configuration: str, depth: int) -> None:
    wrong = {}
    if patch[-1] % multiple[-1]:
        wrong["patch_size"] = f"{patch[-1]} is not a multiple of {multiple[-1]}, which this network needs."
    if configuration == "3d" and patch[0] % multiple[0]:
        wrong["patch_depth"] = f"{patch[0]} is not a multiple of {multiple[0]}, which this network needs."
    if configuration == "2.5d" and depth % 2 == 0:
        wrong["patch_depth"] = "2.5D needs an odd number: a slice and as many neighbours on each side."
    if configuration == "2d" and depth != 1:
        wrong["patch_depth"] = "2D networks see one slice. Leave it out, or choose 2.5D or 3D."
    if wrong:
        raise ConfigErrors(wrong)


def _batch_size(patch: tuple[int, ...], machine: Machine) -> tuple[int, str]:
    most, pixels_in_all = (16, 32 * 256**2) if machine.cuda else (8, 4 * 256**2)
    flat = max(2, min(most, round(pixels_in_all / math.prod(patch))))
    batch = flat if len(patch) == 2 else 4 if machine.cuda else 2
    return batch, "Few patches at once make many corrections; enough of them make each a steady one."


def _duration(wanted: Hyperparameters, reasons: dict[str, str], default_seconds: int) -> tuple[int | None, int | None]:
    epochs, budget = wanted.epochs, wanted.time_budget_seconds
    if epochs is None and budget is None:
        budget = default_seconds
    reasons["epochs"] = "You chose it." if epochs else "As many as fit into the time budget."
    reasons["time_budget_seconds"] = (
        "You chose it."
        if wanted.time_budget_seconds
        else "No limit, since you chose the number of epochs."
        if budget is None
        else f"{budget} seconds are enough for a good first model on most data."
    )
    return epochs, budget


def balanced_weights(shares: Sequence[float]) -> list[float]:
    """Share of the pixels per class → weights of mean 1, by the inverse square root, so that rare classes count more but not wildly."""
    most = max(shares, default=0.0)
    raw = [min(MOST_WEIGHT, (most / share) ** 0.5) if share > 0 else MOST_WEIGHT for share in shares]
    return [weight * len(raw) / sum(raw) for weight in raw]
