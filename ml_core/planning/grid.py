"""How images are made ready, and the grid that they are brought to: their own, or a coarser one where all structures stay thick on it."""

from __future__ import annotations

import math

from ml_core.dataset.fingerprint import Fingerprint
from ml_core.planning.plan import Machine, Preprocessing
from ml_core.planning.request import Chooser, ConfigErrors, parse_spacing

MAX_COARSENING = {2: 8.0, 3: 4.0}  # times coarser than the images, by their dimensions
MAX_CLIPPED = 0.5  # share of a class that clipping may cut off
MIN_THICKNESS = 16.0  # pixels; a structure that stays that thick can be seen on a coarser grid
MIN_COARSENING = 1.5  # a grid less coarse than that is not worth resampling
PLANES = ("axial", "coronal", "sagittal")  # by the axis across which slices are taken


def spacing_of(fingerprint: Fingerprint) -> list[float]:
    """mm per axis of the median image, 1 where unknown."""
    if fingerprint.spacing is None:
        return [1.0] * fingerprint.dimensions
    return [float(step) for step in fingerprint.spacing.median]


def choose_preprocessing(
    choose: Chooser, fingerprint: Fingerprint, configuration: str, machine: Machine
) -> Preprocessing:
    """Slices' axis, target spacing and normalisation. Raises ConfigErrors where a wish does not fit the images."""
    axis = _slice_axis(fingerprint)
    if fingerprint.dimensions == 3:
        choose.reasons["dimensions"] = f"Slices are the {PLANES[axis]} ones, the volumes' finest plane."
    target = _choose_spacing(choose, fingerprint, axis, configuration, machine)
    normalisation = choose("normalisation", *_normalisation(fingerprint))
    wide = normalisation == "image" and max((item.clipped for item in fingerprint.classes), default=0.0) > MAX_CLIPPED
    if wide:
        choose.reasons["normalisation"] += (
            " A class is brighter or darker than nearly all of an image, so extreme values are kept instead of clipped."
        )
    numbers = fingerprint.foreground_intensity
    return Preprocessing(
        channels=fingerprint.channels,
        normalisation=normalisation,
        low=numbers.p005,
        high=numbers.p995,
        mean=numbers.mean,
        std=numbers.std,
        slice_axis=axis,
        whole=configuration == "3d",
        spacing=target,
        unit="mm" if fingerprint.spacing else "px",
        assumed_spacing=spacing_of(fingerprint) if fingerprint.spacing else None,
        # White of a photograph is no air: taken out of one colour and not of another, it would shift the tint.
        without_air=normalisation == "image" and fingerprint.channels == 1,
        wide=wide,
    )


def shape_on_grid(fingerprint: Fingerprint, how: Preprocessing) -> list[float]:
    """(slices,) H, W of the median image on the network's grid."""
    shape = _slices_first(list(fingerprint.shape.median), how.slice_axis)
    spacing = _slices_first(spacing_of(fingerprint), how.slice_axis)
    own = spacing if how.unit == "mm" else [1.0] * len(shape)
    return [n * step / target for n, step, target in zip(shape, own, how.spacing or own, strict=True)]


def _slice_axis(fingerprint: Fingerprint) -> int:
    """The axis of a volume along which pixels lie furthest apart; the first of several."""
    if fingerprint.dimensions == 2:
        return 0
    spacing = spacing_of(fingerprint)
    # Spacings that differ by less than a thousandth of the finest are equal but for rounding.
    return max(range(3), key=lambda axis: (round(spacing[axis] / min(spacing), 3), -axis))


def _slices_first(per_axis: list[float], axis: int) -> list[float]:
    """Of a volume, numbers per axis in the order in which the network sees the axes."""
    if len(per_axis) == 2:
        return per_axis
    return [per_axis[axis], *(number for place, number in enumerate(per_axis) if place != axis)]


def _choose_spacing(
    choose: Chooser, fingerprint: Fingerprint, axis: int, configuration: str, machine: Machine
) -> list[float] | None:
    spacing = _slices_first(spacing_of(fingerprint), axis)
    planned, reason = _target(fingerprint, spacing, configuration, machine)
    asked = choose.request.get("spacing")
    target = planned if asked is None else parse_spacing(str(asked))
    if target is not None and len(target) != len(spacing):
        raise ConfigErrors({"spacing": f"Give {len(spacing)} numbers: the images have as many dimensions."})
    choose("spacing", "", reason)
    choose.values["spacing"] = " ".join(f"{step:g}" for step in target or [])
    return target


def _target(
    fingerprint: Fingerprint, spacing: list[float], configuration: str, machine: Machine
) -> tuple[list[float] | None, str]:
    """The grid that images are brought to: their own median, or a coarser one where all structures stay thick on it."""
    factor, reason = _coarsening(fingerprint, configuration, machine)
    if factor >= MIN_COARSENING:
        keeps_slices = len(spacing) == 3 and configuration != "3d"
        finest = min(spacing) * factor
        coarse = [max(step, finest) for step in spacing]
        return ([spacing[0], *coarse[1:]] if keeps_slices else coarse), reason
    varied = fingerprint.spacing and fingerprint.spacing.minimum != fingerprint.spacing.maximum
    if varied or (configuration == "3d" and fingerprint.spacing):
        return spacing, "The median of the dataset, so that structures have one size."
    return None, "Images keep their own pixels: structures are fine, and all images have one spacing or none."


def _coarsening(fingerprint: Fingerprint, configuration: str, machine: Machine) -> tuple[float, str]:
    """How many times coarser than the images the grid may be, and why; below MIN_COARSENING it stays."""
    measured = [item for item in fingerprint.classes if item.thickness]
    if not measured:
        return 1.0, ""
    thinnest = min(min(item.thickness, item.thin_part) for item in measured)
    side = max(fingerprint.shape.median)
    visible = thinnest / MIN_THICKNESS
    factor = min(visible, side / 256)
    if configuration == "3d" and not machine.cuda:
        typical = min(item.thickness for item in measured)
        factor = max(factor, min(typical, side / 96, 2.0))  # a voxel a structure, at least
    if factor < MIN_COARSENING:
        return factor, ""
    factor = min(MAX_COARSENING[fingerprint.dimensions], math.floor(2 * factor) / 2)
    if factor > visible:
        return factor, (
            f"On a CPU a grid {factor:g} times coarser shows more around each place in the same time; parts thinner than one of its "
            "voxels may be lost."
        )
    return factor, (
        f"Even thin parts of the classes are about {thinnest:.0f} pixels thick, so a grid {factor:g} times coarser shows them, "
        "and each patch shows more around them."
    )


def _normalisation(fingerprint: Fingerprint) -> tuple[str, str]:
    if fingerprint.modality == "CT":
        return "ct", "CT has fixed units, so all images are clipped and scaled by the numbers of the whole dataset."
    return "image", "Each image is scaled by its own mean and spread, since its units are not fixed."
