"""Make the plan of a training from the dataset's fingerprint, the user's request and the machine.

Each choice comes with a reason, a sentence for the user.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ml_core.dataset.classes import LabelClass
from ml_core.dataset.fingerprint import Fingerprint
from ml_core.errors import ConfigError
from ml_core.networks.architecture import Architecture, Arguments
from ml_core.networks.catalogue import ARCHITECTURES, find, network_arguments
from ml_core.planning.budget import DEFAULT_SECONDS
from ml_core.planning.grid import choose_preprocessing, shape_on_grid, spacing_of
from ml_core.planning.hyperparameters import CONFIGURATIONS
from ml_core.planning.plan import FLAT, Machine, Plan, Preprocessing
from ml_core.planning.request import Chooser, ConfigErrors, TrainingRequest

# A training of this length or less on a CPU is short: it sees every image some hundred times at most.
MAX_SHORT_SECONDS = 900
# In a shorter training, Muon's slow start costs more than its better steps bring.
MIN_MUON_EPOCHS, MIN_MUON_SECONDS = 20, 60
# A training of this length has time for a minute of compiling.
MIN_COMPILING_SECONDS = 600
# A volume with fewer slices is seen slice by slice, each with its neighbours.
MIN_SLICES = 16
# The largest weight of a rare class, as a multiple of the most common class's weight.
MAX_CLASS_WEIGHT = 10.0
# A class that covers a smaller share of the pixels is drawn more often.
RARE_SHARE = 0.05


def make_plan(
    request: TrainingRequest,
    fingerprint: Fingerprint,
    classes: Sequence[LabelClass],
    machine: Machine,
    *,
    default_seconds: int = DEFAULT_SECONDS,
) -> Plan:
    """Make the plan of a training.

    `classes` are in the order of their values; the first is the background. `default_seconds` is the time budget if the
    user chose neither a budget nor a number of epochs. Raises ConfigErrors if the request does not fit the dataset.
    """
    choose = Chooser(request)
    configuration = choose("configuration", *_configuration(request, fingerprint))
    _check_configuration(configuration, fingerprint)
    preprocessing = choose_preprocessing(choose, fingerprint, configuration, machine)
    architecture = find(choose("architecture", *_architecture(request, configuration)))
    _check_architecture(architecture, configuration)
    choose("encoder", *_encoder(architecture, machine))
    _check_encoder(architecture, choose.values["encoder"])
    patch = _choose_patch(choose, shape_on_grid(fingerprint, preprocessing), architecture, configuration, machine)
    choose.default("deep_supervision")
    network = _network(choose, architecture, patch, preprocessing)
    _check_patch(patch, choose.values["patch_depth"], architecture.multiple(network), configuration)
    choose("batch_size", *_batch_size(patch, machine))
    _choose_learning(choose, architecture, fingerprint, machine, default_seconds)
    choose.rest()
    return Plan(
        **choose.values,
        reasons=choose.reasons,
        network=network,
        preprocessing=preprocessing,
        balanced_weights=_class_weights(choose.values["class_weights"], fingerprint),
        class_values=[item["value"] for item in classes],
        class_names=[item["name"] for item in classes],
        class_colors=[item["color"] for item in classes],
        dimensions=fingerprint.dimensions,
        fingerprint=fingerprint,
    )


def _configuration(request: TrainingRequest, fingerprint: Fingerprint) -> tuple[str, str]:
    if fingerprint.dimensions == 2:
        return "2d", "The images are pictures, so the network is 2D."
    if architecture := request.get("architecture"):
        three = find(str(architecture)).dimensions == 3
        return ("3d" if three else "2d"), "It follows from the architecture that you chose."
    spacing = spacing_of(fingerprint)
    finest, coarsest = min(spacing), max(spacing)
    if coarsest >= FLAT * finest:
        apart = f"{coarsest / finest:.1f} times further apart than pixels"
        return "2.5d", f"Slices lie {apart}, so a slice with its neighbours tells the network most."
    if min(fingerprint.shape.median) < MIN_SLICES:
        return "2.5d", "There are few slices, so each is seen with its neighbours."
    return "3d", "The volumes are about equally fine in every direction, so the network sees all three."


def _check_configuration(configuration: str, fingerprint: Fingerprint) -> None:
    if fingerprint.dimensions == 2 and configuration != "2d":
        raise ConfigErrors({"configuration": f"These are pictures; {CONFIGURATIONS[configuration]} needs volumes."})


def _architecture(request: TrainingRequest, configuration: str) -> tuple[str, str]:
    """Choose the best architecture for most data among those that can use the encoder that the user chose."""
    encoder, dimensions = request.get("encoder"), 3 if configuration == "3d" else 2
    for name, reason in (
        ("plain-unet-3d", "A plain 3D U-Net with few features learns the most in a given time."),
        ("plain-unet", "A plain U-Net in nnU-Net’s shape learns the most in a given time from random weights."),
        ("unet", "A U-Net is hard to beat on medical images of most kinds."),
    ):
        item = ARCHITECTURES[name]
        if item.dimensions == dimensions and (encoder is None or encoder in item.encoders):
            return name, reason
    fitting = [item for item in ARCHITECTURES.values() if item.dimensions == dimensions and encoder in item.encoders]
    return (fitting[0].name if fitting else "unet"), "It is the first one that can use the encoder that you chose."


def _check_architecture(architecture: Architecture, configuration: str) -> None:
    if (architecture.dimensions == 3) != (configuration == "3d"):
        text = f"{architecture.label} is a {architecture.dimensions}D network"
        cure = "Choose another one, or another configuration."
        raise ConfigErrors({"architecture": f"{text} and does not fit the configuration {configuration}. {cure}"})


def _encoder(architecture: Architecture, machine: Machine) -> tuple[str, str]:
    for name in ("resnet34", "plain-32") if machine.cuda else ("resnet18", "plain-16"):
        if name in architecture.encoders:
            large = f"{name} is large, and a GPU is fast enough for it."
            small = f"{name} is small, so that a CPU can train it on many images a minute."
            return name, large if machine.cuda else small
    return architecture.encoders[0], "It is the first encoder that this architecture can use."


def _check_encoder(architecture: Architecture, encoder: str) -> None:
    if encoder not in architecture.encoders:
        text = f"{architecture.label} cannot use {encoder}. Choose one of: {', '.join(architecture.encoders)}."
        raise ConfigErrors({"encoder": text})


def _choose_patch(
    choose: Chooser, shape: list[float], architecture: Architecture, configuration: str, machine: Machine
) -> tuple[int, ...]:
    """Choose the size of a patch in pixels per axis, for images of `shape` on the network's grid."""
    size = choose("patch_size", *_patch_size(shape, architecture, configuration, machine))
    depth = choose("patch_depth", *_patch_depth(shape, architecture, configuration, machine))
    return (depth, size, size) if configuration == "3d" else (size, size)


def _patch_size(
    shape: list[float], architecture: Architecture, configuration: str, machine: Machine
) -> tuple[int, str]:
    if configuration == "3d":
        largest, step = (128, 16) if machine.cuda else (64, 16)
    else:
        largest, step = (512, 32) if machine.cuda else (256, 32)
    longest = -(-int(max(shape[-2:])) // step) * step
    nearly_whole = longest <= largest + largest // 4
    size = max(architecture.minimum_size, longest if nearly_whole else largest)
    if size >= longest:
        return size, "The whole image fits into one patch."
    return size, f"{size} pixels show a good part of an image, and many steps still fit into the time."


def _patch_depth(
    shape: list[float], architecture: Architecture, configuration: str, machine: Machine
) -> tuple[int, str]:
    if configuration == "2d":
        return 1, "One slice at a time."
    if configuration == "2.5d":
        return 3, "Each slice is seen with the slices before and after it."
    largest = 128 if machine.cuda else 48
    depth = max(architecture.minimum_size, min(largest, -(-int(shape[0]) // 16) * 16))
    return depth, f"A patch of {depth} slices shows enough of a volume, and many steps still fit into the time."


def _network(
    choose: Chooser, architecture: Architecture, patch: tuple[int, ...], preprocessing: Preprocessing
) -> Arguments:
    spacing = preprocessing.spacing if architecture.dimensions == 3 else None
    try:
        return network_arguments(
            architecture.name,
            encoder=choose.values["encoder"],
            patch=patch,
            spacing=tuple(spacing) if spacing else None,
            deep_supervision=choose.values["deep_supervision"] == "on",
        )
    # The only possible error is that the patch does not fit the network.
    except ConfigError as error:
        raise ConfigErrors({"patch_size": str(error)}) from None


def _check_patch(patch: tuple[int, ...], depth: int, multiple: tuple[int, ...], configuration: str) -> None:
    wrong = {}
    if patch[-1] % multiple[-1]:
        wrong["patch_size"] = f"{patch[-1]} is not a multiple of {multiple[-1]}, which this network needs."
    if configuration == "3d" and depth % multiple[0]:
        wrong["patch_depth"] = f"{depth} is not a multiple of {multiple[0]}, which this network needs."
    if configuration == "2.5d" and depth % 2 == 0:
        wrong["patch_depth"] = "2.5D needs an odd number: a slice and as many neighbours on each side."
    if configuration == "2d" and depth != 1:
        wrong["patch_depth"] = "A 2D network sees one slice. Leave the patch depth out, or choose 2.5D or 3D."
    if wrong:
        raise ConfigErrors(wrong)


def _batch_size(patch: tuple[int, ...], machine: Machine) -> tuple[int, str]:
    largest, pixels_in_all = (16, 32 * 256**2) if machine.cuda else (8, 4 * 256**2)
    flat = max(2, min(largest, round(pixels_in_all / math.prod(patch))))
    batch = flat if len(patch) == 2 else 4 if machine.cuda else 2
    return batch, "A small batch allows many steps in a given time, and this one is large enough for steady steps."


def _choose_learning(
    choose: Chooser, architecture: Architecture, fingerprint: Fingerprint, machine: Machine, default_seconds: int
) -> None:
    budget = choose("time_budget_seconds", *_time_budget(choose.request, default_seconds))
    epochs: int | None = choose("epochs", None, "As many as fit into the time budget.")
    choose("learning_rate", *architecture.learning_rate)
    choose("optimizer", *_optimizer(architecture, machine, epochs, budget))
    choose("augmentation", *_augmentation(fingerprint, machine, budget))
    choose("foreground_share", *_foreground_share(fingerprint))
    choose("precision", *_precision(machine))
    choose("torch_compile", *_torch_compile(machine, budget))


def _time_budget(request: TrainingRequest, default_seconds: int) -> tuple[int | None, str]:
    if request.get("epochs") is not None:
        return None, "No limit, since you chose the number of epochs."
    return default_seconds, f"{default_seconds} seconds are enough for a good first model on most data."


def _optimizer(architecture: Architecture, machine: Machine, epochs: int | None, budget: int | None) -> tuple[str, str]:
    if (epochs is not None and epochs < MIN_MUON_EPOCHS) or (budget is not None and budget < MIN_MUON_SECONDS):
        return "adamw", "AdamW learns more than Muon in the first steps, and the training is not much longer."
    # Muon multiplies matrices in bfloat16, which takes many times as long on a machine without fast bfloat16.
    if architecture.suits_muon and machine.bf16:
        return "muon", "Muon learns more in each step than AdamW, and this machine takes its steps quickly."
    return "adamw", "AdamW is steady and its steps cost little."


def _augmentation(fingerprint: Fingerprint, machine: Machine, budget: int | None) -> tuple[str, str]:
    if budget is None or budget > MAX_SHORT_SECONDS or machine.cuda:
        return "standard", "Flips, rotations, scale and brightness make a small dataset go further."
    if fingerprint.modality == "CT":
        return (
            "none",
            "CT values have fixed units, and bodies always lie the same way in a scanner, so a short training learns "
            "fastest from unchanged images.",
        )
    if fingerprint.dimensions == 3 or "raster" not in fingerprint.families:
        text = (
            "Bodies always lie the same way in a scanner, so a short training learns fastest from images that are not "
            "turned; only their brightness changes."
        )
        return "intensity", text
    pose = fingerprint.pose
    if pose and pose.lie_in_one_way:
        text = (
            f"The images all lie the same way (they correlate by {pose.alike:.2f}, and by {pose.turned:.2f} after "
            "turning), so a short training learns fastest from images that are not turned; only their brightness "
            "changes."
        )
        return "intensity", text
    text = (
        "A short training has no time for bending images and turning them by any angle, so it only flips them, turns "
        "them by quarters and changes their brightness."
    )
    return "light", text


def _foreground_share(fingerprint: Fingerprint) -> tuple[float, str]:
    if min((item.share for item in fingerprint.classes), default=1.0) < RARE_SHARE:
        rare = f"A class covers less than {RARE_SHARE:.0%} of the pixels"
        return 0.5, f"{rare}, so half of the patches are placed on a randomly drawn class."
    return 0.33, "A third of the patches is placed on a randomly drawn class, so that every class is seen often."


def _precision(machine: Machine) -> tuple[str, str]:
    if machine.bf16:
        return "bf16", "bfloat16 is faster on this machine, and the operations that need it still use float32."
    return "fp32", "This machine has no fast bfloat16."


def _torch_compile(machine: Machine, budget: int | None) -> tuple[str, str]:
    if not machine.cuda:
        return "off", "On a CPU, the shorter steps seldom make up for the minute that compiling takes."
    if budget is not None and budget < MIN_COMPILING_SECONDS:
        return "off", "Compiling takes about a minute, which is too much of this time budget."
    return "on", "On a GPU, compiling shortens the steps, and the training is long enough for the minute that it takes."


def _class_weights(chosen: str, fingerprint: Fingerprint) -> list[float]:
    return balanced_weights([item.share for item in fingerprint.classes]) if chosen == "balanced" else []


def balanced_weights(shares: Sequence[float]) -> list[float]:
    """Compute class weights of mean 1 from the share of the pixels that each class covers.

    A weight goes with the inverse square root of the share, limited by MAX_CLASS_WEIGHT, so that rare classes count
    more but do not dominate.
    """
    largest = max(shares, default=0.0)
    raw = [min(MAX_CLASS_WEIGHT, (largest / share) ** 0.5) if share > 0 else MAX_CLASS_WEIGHT for share in shares]
    return [weight * len(raw) / sum(raw) for weight in raw]
