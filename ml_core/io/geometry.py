"""The geometry of DICOM slices: their order along the normal, their spacing and their affine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from ml_core.errors import ImageError
from ml_core.io.image import Notice

# Differences up to this are rounding, in mm (and in the components of a direction).
_TOLERANCE = 1e-3
# A gap between slices may differ from the typical gap by this share.
_GAP = 0.02
# DICOM's axes point left, posterior and up; ours point right, anterior and up.
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_ASSUMED_ORIENTATION = Notice(
    "no_orientation",
    "The slices have positions and no orientation (ImageOrientationPatient). They were put in the order of their "
    "positions and taken as axial.",
)


@dataclass(frozen=True)
class Plane:
    """The geometry of one slice in DICOM's coordinates (LPS, mm). A field is None if the header does not give it."""

    position: tuple[float, ...] | None
    """Centre of the first pixel: (x, y, z)."""
    orientation: tuple[float, ...] | None
    """Unit vector along a row, then along a column: 6 numbers."""
    spacing: tuple[float, ...] | None
    """Distance between rows, then between columns, in mm."""
    step: float | None
    """Distance to the next slice in mm. The header may give a negative one."""


def frame_planes(dataset: Dataset, count: int) -> list[Plane]:
    """Read the plane of each of `count` frames.

    A value comes from the frame's functional groups, else from the shared ones, else from the top level of the header.
    """
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    planes = []
    own_positions = False
    for index in range(count):
        groups = [g for g in (per_frame[index] if index < len(per_frame) else None, shared) if g is not None]

        def find(sequence: str, keyword: str, length: int, groups: list[Any] = groups) -> tuple[float, ...] | None:
            items = [item[0] for group in groups if (item := group.get(sequence))]
            return next((v for item in (*items, dataset) if (v := _numbers(item, keyword, length))), None)

        own_positions |= any(group.get("PlanePositionSequence") for group in groups)
        spacing = find("PixelMeasuresSequence", "PixelSpacing", 2) or _numbers(dataset, "ImagerPixelSpacing", 2)
        step = find("PixelMeasuresSequence", "SpacingBetweenSlices", 1) or find(
            "PixelMeasuresSequence", "SliceThickness", 1
        )
        planes.append(
            Plane(
                find("PlanePositionSequence", "ImagePositionPatient", 3),
                find("PlaneOrientationSequence", "ImageOrientationPatient", 6),
                spacing if spacing and min(spacing) > 0 else None,
                step[0] if step and step[0] != 0 else None,
            )
        )
    if count > 1 and not own_positions:
        return _spread(planes)
    return planes


@dataclass(frozen=True)
class Stack:
    """How slices make a volume."""

    order: list[int]
    """The indices of the slices, along their normal."""
    spacing: tuple[float, ...] | None
    """mm in array order: (D, H, W), or (H, W) for a single plane; None when unknown."""
    affine: NDArray[np.float64] | None
    """4x4, stored voxel → RAS+ mm; None when unknown."""
    notices: tuple[Notice, ...] = ()
    """What was guessed."""


def is_placed(planes: Sequence[Plane]) -> bool:
    """Whether positions give the order of slices: all have one and, if they have no orientation, these differ."""
    if any(plane.position is None for plane in planes):
        return False
    positions = np.array([plane.position for plane in planes], dtype=np.float64)
    return planes[0].orientation is not None or bool(np.ptp(positions, axis=0).max() > _TOLERANCE)


def stack(planes: Sequence[Plane], names: Sequence[str]) -> Stack:
    """Stack slices to a volume. Messages call the slices by their `names`.

    Slices are ordered along their normal. Without an orientation they are ordered along the direction in which their
    positions are spread most, and assumed to lie straight. Planes without positions keep their order. Raises ImageError
    with code mixed_spacing, mixed_orientation, bad_geometry, no_position, duplicate_position or uneven_gaps.
    """
    count, first = len(planes), planes[0]
    for plane, name in zip(planes, names, strict=True):
        if not same_numbers(plane.spacing, first.spacing):
            raise _mixed("mixed_spacing", f"{name} has another pixel spacing than {names[0]}")
        if not same_numbers(plane.orientation, first.orientation):
            raise _mixed("mixed_orientation", f"{name} has another orientation than {names[0]}")
    placed = [plane.position is not None for plane in planes]
    if any(placed) and not all(placed):
        raise _mixed("no_position", f"{names[placed.index(False)]} has no ImagePositionPatient")
    order, across = list(range(count)), first.step
    positions = normal = None
    notices: tuple[Notice, ...] = ()
    if is_placed(planes):
        positions = np.array([plane.position for plane in planes], dtype=np.float64)
        if first.orientation is None:
            normal, notices = _main_direction(positions), (_ASSUMED_ORIENTATION,)
        else:
            normal = np.cross(first.orientation[:3], first.orientation[3:])
        if abs(float(np.linalg.norm(normal)) - 1) > 0.01:
            raise _mixed("bad_geometry", f"{names[0]} has an orientation whose axes are not perpendicular")
        order = [int(i) for i in np.argsort(positions @ normal, kind="stable")]
        positions = positions[order]
        direction = normal * abs(first.step or 1.0)
        if count > 1:
            direction = _even_step(positions, normal, [names[i] for i in order])
            across = float(np.linalg.norm(direction))
    if first.spacing is None:
        return Stack(order, None, None, notices)
    rows, columns = first.spacing
    spacing: tuple[float, ...] | None = (rows, columns)
    if count > 1:
        spacing = None if across is None else (abs(across), rows, columns)
    if positions is None or first.orientation is None:
        if count == 1 or spacing is None:
            return Stack(order, spacing, None, notices)
        # A volume of unknown orientation is assumed to lie straight, its x axis to the patient's left and its y axis to
        # the back. ITK assumes the same. The screen then shows the slices as they are stored.
        straight = _LPS_TO_RAS @ np.diag([columns, rows, spacing[0], 1.0])
        return Stack(order, spacing, np.asarray(straight, dtype=np.float64), notices)
    affine = np.eye(4)
    affine[:3, 0] = np.multiply(first.orientation[:3], columns)
    affine[:3, 1] = np.multiply(first.orientation[3:], rows)
    affine[:3, 2] = direction
    affine[:3, 3] = positions[0]
    return Stack(order, spacing, np.asarray(_LPS_TO_RAS @ affine, dtype=np.float64), notices)


def _main_direction(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """The unit vector (3,) along which positions (N, 3) are spread most. Its largest component is positive."""
    _, _, axes = np.linalg.svd(positions - positions.mean(axis=0), full_matrices=False)
    direction: NDArray[np.float64] = axes[0]
    return direction if direction[np.abs(direction).argmax()] > 0 else -direction


def _even_step(
    positions: NDArray[np.float64], normal: NDArray[np.float64], names: Sequence[str]
) -> NDArray[np.float64]:
    """Return the mean vector from slice to slice, (3,) in mm. Raises ImageError if slices coincide or gaps differ.

    A constant sideways shift from slice to slice (gantry tilt) is allowed. It makes the affine a sheared one.
    """
    gaps = np.diff(positions @ normal)
    nearest = int(gaps.argmin())
    if gaps[nearest] < _TOLERANCE:
        raise ImageError(
            "duplicate_position",
            f"{names[nearest]} and {names[nearest + 1]} lie at the same position: the series holds copies, or several "
            "time points or echoes.",
            "Give one volume at a time.",
        )
    steps = np.diff(positions, axis=0)
    typical = np.median(steps, axis=0)
    off = np.linalg.norm(steps - typical, axis=1)
    worst = int(off.argmax())
    if off[worst] > max(0.01, _GAP * float(np.linalg.norm(typical))):
        raise ImageError(
            "uneven_gaps",
            f"The slices are not evenly spaced: {np.linalg.norm(steps[worst]):.4g} mm between {names[worst]} and "
            f"{names[worst + 1]}, elsewhere {np.linalg.norm(typical):.4g} mm. A slice may be missing.",
            "Add the missing slices, or resample the series to even gaps.",
        )
    return np.asarray((positions[-1] - positions[0]) / (len(positions) - 1), dtype=np.float64)


def _spread(planes: list[Plane]) -> list[Plane]:
    """Give frames that share one position (classic multi-frame) positions of their own, one step apart.

    Without a known step the frames lose their position, because it is true of the first one only.
    """
    first = planes[0]
    if first.position is None or first.orientation is None or first.step is None:
        return [replace(plane, position=None) for plane in planes]
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    start, step = np.array(first.position), first.step
    return [
        replace(plane, position=tuple((start + normal * step * index).tolist())) for index, plane in enumerate(planes)
    ]


def _numbers(item: Any, keyword: str, length: int) -> tuple[float, ...] | None:
    """Read `length` finite numbers from an element; None if they are missing or unusable."""
    value = item.get(keyword)
    if value is None or value == "":
        return None
    numbers = tuple(float(v) for v in (value if length > 1 else [value]))
    return numbers if len(numbers) == length and np.isfinite(numbers).all() else None


def same_numbers(a: tuple[float, ...] | None, b: tuple[float, ...] | None) -> bool:
    """Whether two measures agree within rounding, or are both unknown."""
    if a is None or b is None:
        return a is b
    return bool(np.abs(np.subtract(a, b)).max() <= _TOLERANCE)


def _mixed(code: str, reason: str) -> ImageError:
    return ImageError(code, f"{reason}.", "Give only the files of one volume.")
