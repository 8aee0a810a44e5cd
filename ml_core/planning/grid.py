"""Plan the preprocessing of images: their normalisation, and the grid that they are resampled to.

The grid is that of the images, or a coarser one if all structures are thick enough to be seen on it.
"""

from __future__ import annotations

import math

from ml_core.dataset.fingerprint import Fingerprint
from ml_core.planning.plan import Machine, Preprocessing
from ml_core.planning.request import Chooser, ConfigErrors, parse_spacing

# The coarsest grid, as a multiple of the images' spacing, by the dimensions of the images.
MAX_COARSENING = {2: 8.0, 3: 4.0}
# Share of a class's pixels that clipping may change.
MAX_CLIPPED = 0.5
# Pixels across the thinnest structure that must remain on a coarser grid.
MIN_THICKNESS = 16.0
# A grid that is coarser by less than this is not worth resampling.
MIN_COARSENING = 1.5
# The name of the slices, by the axis across which they are taken.
PLANES = ("axial", "coronal", "sagittal")


def spacing_of(fingerprint: Fingerprint) -> list[float]:
    """Return the median spacing of the images in mm per axis, or 1 per axis if it is unknown."""
    if fingerprint.spacing is None:
        return [1.0] * fingerprint.dimensions
    return [float(step) for step in fingerprint.spacing.median]


def choose_preprocessing(
    choose: Chooser, fingerprint: Fingerprint, configuration: str, machine: Machine
) -> Preprocessing:
    """Choose the axis of the slices, the target spacing and the normalisation.

    Raises ConfigErrors if a requested value does not fit the images.
    """
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
        # The white ground of a photograph must not be removed as air. If it were removed from one colour channel and
        # not from another, the tint would shift.
        without_air=normalisation == "image" and fingerprint.channels == 1,
        wide=wide,
    )


def shape_on_grid(fingerprint: Fingerprint, how: Preprocessing) -> list[float]:
    """Return the shape of the median image on the network's grid: (slices, H, W), or (H, W) for 2D images."""
    shape = _slices_first(list(fingerprint.shape.median), how.slice_axis)
    spacing = _slices_first(spacing_of(fingerprint), how.slice_axis)
    own = spacing if how.unit == "mm" else [1.0] * len(shape)
    return [n * step / target for n, step, target in zip(shape, own, how.spacing or own, strict=True)]


def _slice_axis(fingerprint: Fingerprint) -> int:
    """Return the axis across which slices of a volume are taken: the first of those with the largest spacing."""
    if fingerprint.dimensions == 2:
        return 0
    spacing = spacing_of(fingerprint)
    # Spacings that differ by less than a thousandth of the finest are equal but for rounding.
    return max(range(3), key=lambda axis: (round(spacing[axis] / min(spacing), 3), -axis))


def _slices_first(per_axis: list[float], axis: int) -> list[float]:
    """Reorder a volume's numbers per axis to the network's order of axes, which starts with the axis of the slices."""
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
        raise ConfigErrors({"spacing": f"Give {len(spacing)} numbers, one for each dimension of the images."})
    choose("spacing", "", reason)
    choose.values["spacing"] = " ".join(f"{step:g}" for step in target or [])
    return target


def _target(
    fingerprint: Fingerprint, spacing: list[float], configuration: str, machine: Machine
) -> tuple[list[float] | None, str]:
    """Plan the target spacing per axis, and the reason for it; None leaves the images on their own grids.

    It is the median spacing of the images, or a coarser one if all structures stay thick enough on it.
    """
    factor, reason = _coarsening(fingerprint, configuration, machine)
    if factor >= MIN_COARSENING:
        keeps_slices = len(spacing) == 3 and configuration != "3d"
        finest = min(spacing) * factor
        coarse = [max(step, finest) for step in spacing]
        return ([spacing[0], *coarse[1:]] if keeps_slices else coarse), reason
    varied = fingerprint.spacing and fingerprint.spacing.minimum != fingerprint.spacing.maximum
    if varied or (configuration == "3d" and fingerprint.spacing):
        return spacing, "The median spacing of the dataset, so that structures have the same size in all images."
    return None, "Images keep their own pixels, because structures are fine and all images have one spacing or none."


def _coarsening(fingerprint: Fingerprint, configuration: str, machine: Machine) -> tuple[float, str]:
    """Return how many times coarser than the images the grid may be, and why. Below MIN_COARSENING, the grid stays."""
    measured = [item for item in fingerprint.classes if item.thickness]
    if not measured:
        return 1.0, ""
    thinnest = min(min(item.thickness, item.thin_part) for item in measured)
    side = max(fingerprint.shape.median)
    visible = thinnest / MIN_THICKNESS
    factor = min(visible, side / 256)
    if configuration == "3d" and not machine.cuda:
        typical = min(item.thickness for item in measured)
        # On a CPU, a structure may shrink to one voxel.
        factor = max(factor, min(typical, side / 96, 2.0))
    if factor < MIN_COARSENING:
        return factor, ""
    factor = min(MAX_COARSENING[fingerprint.dimensions], math.floor(2 * factor) / 2)
    if factor > visible:
        return factor, (
            f"On a CPU, a grid {factor:g} times coarser shows the network more of a volume in the same time. Parts "
            "thinner than one of its voxels may be lost."
        )
    return factor, (
        f"Even thin parts of the classes are about {thinnest:.0f} pixels thick, so a grid {factor:g} times coarser "
        "still shows them, and each patch shows more of their surroundings."
    )


def _normalisation(fingerprint: Fingerprint) -> tuple[str, str]:
    if fingerprint.modality == "CT":
        return "ct", "CT has fixed units, so all images are clipped and scaled by the statistics of the whole dataset."
    return "image", "Each image is scaled by its own mean and standard deviation, because its units are not fixed."
