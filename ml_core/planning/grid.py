"""How images are made ready, and the grid that they are brought to: their own, or a coarser one where all structures stay thick on it."""

from __future__ import annotations

import math

from ml_core.dataset.fingerprint import Fingerprint
from ml_core.planning.choosing import Chooser
from ml_core.planning.hyperparameters import ConfigErrors, parse_spacing
from ml_core.planning.plan import Machine, Preprocessing

COARSEST = {2: 8.0, 3: 4.0}  # times coarser than the images, at most, by their dimensions
MOST_CUT_OFF = 0.5  # of a class may be clipped
THICK = 16.0  # pixels; a structure that stays that thick can be seen on a coarser grid


def spacing_of(fingerprint: Fingerprint) -> list[float]:
    """mm per axis of the median image, 1 where unknown."""
    return (
        [float(step) for step in fingerprint.spacing.median] if fingerprint.spacing else [1.0] * fingerprint.dimensions
    )


def choose_preprocessing(
    choose: Chooser, fingerprint: Fingerprint, configuration: str, machine: Machine
) -> Preprocessing:
    """Slices' axis, target spacing and normalisation. Raises ConfigErrors where a wish does not fit the images."""
    axis, spacing = 0, spacing_of(fingerprint)
    if fingerprint.dimensions == 3:
        axis = max(range(3), key=lambda item: (round(spacing[item], 3), -item))
        name = ("axial", "coronal", "sagittal")[axis]
        choose.reasons["dimensions"] = f"Slices are the {name} ones, the volumes' finest plane."
        spacing = [spacing[axis], *(step for item, step in enumerate(spacing) if item != axis)]
    target = choose("spacing", *_target(fingerprint, spacing, configuration, machine))
    if isinstance(target, str):
        target = parse_spacing(target)
        if len(target) != len(spacing):
            raise ConfigErrors({"spacing": f"Give {len(spacing)} numbers: the images have as many dimensions."})
    normalisation = choose(
        "normalisation",
        *(
            ("ct", "CT has fixed units, so all images are clipped and scaled by the numbers of the whole dataset.")
            if fingerprint.modality == "CT"
            else ("image", "Each image is scaled by its own mean and spread, since its units are not fixed.")
        ),
    )
    numbers = fingerprint.foreground_intensity
    cut_off = max((item.clipped for item in fingerprint.classes), default=0.0)
    wide = normalisation == "image" and cut_off > MOST_CUT_OFF
    if wide:
        text = (
            "A class is brighter or darker than nearly all of an image, so extreme values are kept instead of clipped."
        )
        choose.reasons["normalisation"] += f" {text}"
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


def _target(
    fingerprint: Fingerprint, spacing: list[float], configuration: str, machine: Machine
) -> tuple[list[float] | None, str]:
    """The grid that images are brought to: their own median, or a coarser one where all structures stay thick on it."""
    measured = [(item.thickness, item.thin_part) for item in fingerprint.classes if item.thickness]
    thickness = [min(pair) for pair in measured]
    thinnest = min(thickness, default=0.0)
    side = max(fingerprint.shape.median)
    factor = min(thinnest / THICK, side / 256) if thickness else 1.0
    if configuration == "3d" and thickness and not machine.cuda:
        typical = min(whole for whole, _ in measured)
        factor = max(factor, min(typical, side / 96, 2.0))  # a voxel a structure, at least
    if factor >= 1.5:
        factor = min(COARSEST[fingerprint.dimensions], math.floor(2 * factor) / 2)
        coarse = [step if item == 0 and len(spacing) == 3 and configuration != "3d" else max(step, min(spacing) * factor)
                  for item, step in enumerate(spacing)]  # fmt: skip
        if factor > thinnest / THICK:
            reason = (
                f"On a CPU a grid {factor:g} times coarser shows more around each place in the same time; parts thinner than one of its "
                "voxels may be lost."
            )
        else:
            reason = (
                f"Even thin parts of the classes are about {thinnest:.0f} pixels thick, so a grid {factor:g} times coarser shows them, "
                "and each patch shows more around them."
            )
        return coarse, reason
    varied = fingerprint.spacing and fingerprint.spacing.minimum != fingerprint.spacing.maximum
    if varied or (configuration == "3d" and fingerprint.spacing):
        return spacing, "The median of the dataset, so that structures have one size."
    return None, "Images keep their own pixels: structures are fine, and all images have one spacing or none."


def shape_on_grid(fingerprint: Fingerprint, how: Preprocessing) -> list[float]:
    """(slices,) H, W of the median image on the network's grid."""
    shape, spacing = list(fingerprint.shape.median), spacing_of(fingerprint)
    if fingerprint.dimensions == 3:
        order = [how.slice_axis, *(axis for axis in range(3) if axis != how.slice_axis)]
        shape, spacing = [shape[axis] for axis in order], [spacing[axis] for axis in order]
    own = spacing if how.unit == "mm" else [1.0] * len(shape)
    return [n * step / target for n, step, target in zip(shape, own, how.spacing or own, strict=True)]
