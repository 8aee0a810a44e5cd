"""The fingerprint of a dataset: its shapes, spacings, intensities and class shares, gathered one case at a time.

The idea is nnU-Net's: a plan is derived from a few statistics of the dataset (Isensee et al., Nature Methods 2021,
https://doi.org/10.1038/s41592-020-01008-z).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ml_core.dataset.pose import Pose, PoseBuilder
from ml_core.documents import Document
from ml_core.io import Image
from ml_core.measures.metrics import bounding_box

# Pixels drawn from each case: enough for percentiles, and few enough for 100,000 cases.
SAMPLED_PIXELS = 2_000
# Sizes and thicknesses of classes are measured on the first cases only, and on a few slices of each volume.
MAX_CASES_OF_STRUCTURE = 50
MAX_SLICES_OF_STRUCTURE = 6
# Once this many pixels were measured, which takes some seconds, the measuring stops, but not before this many cases.
MIN_CASES_OF_STRUCTURE = 3
MAX_PIXELS_OF_STRUCTURE = 40_000_000
# In a case of more than LARGE pixels, foreground is searched among this many random pixels first. If that finds too
# little, as for small structures, all pixels are searched.
SEARCHED_PIXELS = 500_000
LARGE = 4_000_000
# Preprocessing clips an image to these percentiles of its values (ml_core.cases.preprocessing).
CLIPPED = (0.5, 99.5)
# Share of an image that the value of its corner must cover to count as air.
MIN_AIR = 0.25
# Foreground pixels that a dataset needs for statistics of its foreground.
MIN_FOREGROUND = 500


@dataclass(frozen=True)
class Spread(Document):
    """The minimum, median and maximum over all cases of one number per axis, in array order ((z,) y, x)."""

    minimum: list[int | float]
    median: list[int | float]
    maximum: list[int | float]


@dataclass(frozen=True)
class Intensity(Document):
    """The values of the images, in the images' own units."""

    low: float
    """Median over the cases of the 0.5 percentile."""
    high: float
    """Median over the cases of the 99.5 percentile."""
    minimum: float
    """Smallest 0.5 percentile of any case."""
    maximum: float
    """Largest 99.5 percentile of any case."""
    mean: float
    """Mean over the cases of each case's mean."""
    std: float
    """Mean over the cases of each case's standard deviation."""


@dataclass(frozen=True)
class ForegroundIntensity(Document):
    """The values of all pixels whose class is not the background, in the images' own units."""

    p005: float
    """0.5 percentile."""
    p995: float
    """99.5 percentile."""
    mean: float
    """Mean of the values clipped to these percentiles."""
    std: float
    """Standard deviation of the values clipped to these percentiles."""


@dataclass(frozen=True)
class ClassFingerprint(Document):
    """One class of the dataset, over all cases."""

    value: int
    """Label value in the masks."""
    pixels: int
    """Number of its pixels (voxels)."""
    share: float
    """Its share of all pixels, 0 to 1."""
    cases: int
    """Number of cases in which it occurs."""
    component_pixels: float
    """Median size of its connected parts in a slice, in pixels."""
    thickness: float
    """Typical width in a slice, in pixels; 0 if none was measured."""
    thin_part: float
    """Width in pixels that a tenth of its parts falls below; larger parts weigh more."""
    clipped: float
    """Share of its pixels that clipping to CLIPPED would change, 0 to 1; 0 in colour images."""


@dataclass(frozen=True)
class Fingerprint(Document):
    """The properties of a dataset that a plan depends on.

    Sizes are in pixels and spacings in mm, both in array order ((z,) y, x).
    """

    n_cases: int
    """Number of cases."""
    dimensions: int
    """2 for 2D images, 3 for volumes."""
    channels: int
    """1 to 16: the number that most images have. Only 1 and 3 occur together."""
    modality: str
    """The modality of most images: "CT", "MR", …, "colour", "greyscale", "multichannel" or "unknown"."""
    families: dict[str, int]
    """File family ("raster", "nifti", "dicom") → number of images."""
    pose: Pose | None
    """How similar the images are in their own orientation and turned; None for volumes and for few images."""
    shape: Spread
    """Spatial shapes of the images."""
    spacing: Spread | None
    """Spacings of the images; None if no file gives one."""
    intensity: Intensity
    foreground_intensity: ForegroundIntensity
    classes: list[ClassFingerprint]
    """The classes: the background, then the others in the order of their label values."""
    grouping: str = ""
    """What the dataset's split kept together; empty if the platform made no split."""
    mask_codes: dict[str, int] = field(default_factory=dict)
    """Label value of each value in the masks ("#rrggbb" or a number as text; "*" for all others); empty: its own."""
    ignored: list[int] = field(default_factory=list)
    """Label values of pixels that nobody labelled; they are no class."""


class FingerprintBuilder:
    """Builds a Fingerprint: `add` every case, then call `result`.

    Its memory does not grow with the size of the images.
    """

    def __init__(self, background: int | None = None, ignored: Sequence[int] = ()) -> None:
        """background: its label value; None: the lowest so far. ignored: label values that are no class."""
        self._background, self._ignored = background, tuple(ignored)
        self._rng, self._rng_inside = np.random.default_rng(0), np.random.default_rng(1)
        self._looked_at = 0
        self._shapes: Counter[tuple[int, ...]] = Counter()
        self._spacings: list[tuple[float, ...]] = []
        self._channels: Counter[int] = Counter()
        self._modalities: Counter[str] = Counter()
        self._families: Counter[str] = Counter()
        self._class_pixels: Counter[int] = Counter()
        self._class_cases: Counter[int] = Counter()
        self._ranges: list[tuple[float, float]] = []
        self._means: list[tuple[float, float]] = []
        self._foreground: list[NDArray[np.float32]] = []
        self._sampled = 0
        self._sizes: dict[int, list[int]] = {}
        self._thickness: dict[int, list[float]] = {}
        self._parts: dict[int, list[tuple[float, float]]] = {}
        self._clipped: dict[int, list[float]] = {}
        self._pose = PoseBuilder()

    def add(self, image: Image, values: NDArray[Any], counts: dict[int, int]) -> None:
        """Add one case.

        `values` is its mask in label values, of the image's shape; `counts` its pixels per label value.
        """
        self._shapes[image.shape] += 1
        if image.spacing:
            self._spacings.append(tuple(float(step) for step in image.spacing))
        self._channels[image.channels] += 1
        self._modalities[image.modality or guess_modality(image)] += 1
        self._families[image.family] += 1
        if image.dimensions == 2:
            self._pose.add(image.array)
        counts = {value: count for value, count in counts.items() if value not in self._ignored}
        for value, count in counts.items():
            self._class_pixels[value] += count
            self._class_cases[value] += 1
        pixels = image.array.reshape(image.channels, -1)
        picked = self._rng.integers(0, pixels.shape[1], size=SAMPLED_PIXELS)
        sample = pixels[:, picked].astype(np.float32)
        low, high = np.percentile(sample, [0.5, 99.5])
        self._ranges.append((float(low), float(high)))
        self._means.append((float(sample.mean()), float(sample.std())))
        if self._sampled < 2_000_000:
            background = min(self._class_pixels, default=0) if self._background is None else self._background
            places = self._places_inside(values.reshape(-1), [background, *self._ignored])
            inside = pixels[:, places].astype(np.float32).mean(axis=0)
            self._foreground.append(inside)
            self._sampled += inside.size
            if image.channels == 1:
                self._add_clipped(body_of(sample[0], pixels[0, 0]), inside, values.reshape(-1)[places])
        number = self._shapes.total()
        is_looked_at = number <= MAX_CASES_OF_STRUCTURE and (
            number <= MIN_CASES_OF_STRUCTURE or self._looked_at < MAX_PIXELS_OF_STRUCTURE
        )
        self._add_structure(values, [value for value in counts if is_looked_at or value not in self._sizes])

    def _add_clipped(self, body: NDArray[np.float32], inside: NDArray[np.float32], classes: NDArray[Any]) -> None:
        """Record for each class the share of its sampled pixels that lies outside the image's own percentiles CLIPPED.

        `body` are sampled values of the image without air; `inside` and `classes` are the values and label values of
        foreground pixels, (K,) each.
        """
        low, high = np.percentile(body, CLIPPED)
        beyond = (inside < low) | (inside > high)
        for value in np.unique(classes):
            self._clipped.setdefault(int(value), []).append(float(beyond[classes == value].mean()))

    def _places_inside(self, flat: NDArray[Any], others: list[int]) -> NDArray[np.intp]:
        """Draw up to SAMPLED_PIXELS positions of foreground in a flattened mask, (K,): of no value in `others`.

        Small structures are found too.
        """
        places = self._rng_inside.integers(0, flat.size, size=SEARCHED_PIXELS if flat.size > LARGE else 0)
        places = places[_is_none_of(flat[places], others)]
        if len(places) < SAMPLED_PIXELS:
            places = np.flatnonzero(_is_none_of(flat, others))
        if len(places) <= SAMPLED_PIXELS:
            return places
        return self._rng_inside.choice(places, SAMPLED_PIXELS, replace=False)

    def _add_structure(self, values: NDArray[Any], classes: list[int]) -> None:
        """Measure in some slices, for each of the label values `classes`, its thickness and the size of its parts."""
        for value in classes:
            slices = values[None] if values.ndim == 2 else values
            present = np.flatnonzero((slices == value).any(axis=(1, 2)))
            picked = present[np.linspace(0, len(present) - 1, min(len(present), MAX_SLICES_OF_STRUCTURE)).astype(int)]
            for mask in (slices[index] == value for index in picked):
                mask = mask[bounding_box(mask)]
                self._looked_at += mask.size
                parts, _ = ndimage.label(mask)
                sizes = np.bincount(parts.reshape(-1))[1:]
                self._sizes.setdefault(value, []).extend(sizes.tolist())
                # The pixels of a strip of width w have a mean distance to the border of w / 4. The distance transform
                # measures from pixel centres, which adds half a pixel.
                depths = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
                self._thickness.setdefault(value, []).append(4 * (float(depths[mask].mean()) - 0.5))
                widths = 4 * (np.bincount(parts.reshape(-1), depths.reshape(-1))[1:] / sizes - 0.5)
                self._parts.setdefault(value, []).extend(
                    zip(widths.tolist(), (np.sqrt(sizes) - 1 + 1e-6).tolist(), strict=True)
                )

    def result(self) -> Fingerprint:
        """Return the fingerprint of the cases added so far, of which there must be one at least."""
        shapes = np.array(list(self._shapes.elements()))
        inside = np.concatenate(self._foreground) if self._foreground else np.zeros(0, np.float32)
        if inside.size < MIN_FOREGROUND or inside.min() == inside.max():
            inside = np.array([bound for pair in self._ranges for bound in pair], np.float32)
        low, high = np.percentile(inside, [0.5, 99.5])
        clipped = np.clip(inside, low, high)
        return Fingerprint(
            n_cases=len(shapes),
            dimensions=int(shapes.shape[1]),
            channels=self._channels.most_common(1)[0][0],
            modality=self._modalities.most_common(1)[0][0],
            families=dict(self._families),
            pose=self._pose.result(),
            shape=_spread(shapes),
            spacing=_spread(np.array(self._spacings)) if self._spacings else None,
            intensity=self._intensity(),
            foreground_intensity=ForegroundIntensity(
                float(low), float(high), float(clipped.mean()), float(clipped.std())
            ),
            classes=[self._class(value) for value in self._ordered_classes()],
            ignored=list(self._ignored),
        )

    def _ordered_classes(self) -> list[int]:
        first = self._background
        return sorted(self._class_pixels, key=lambda value: (first is not None and value != first, value))

    def _intensity(self) -> Intensity:
        lows, highs = zip(*self._ranges, strict=True)
        means, deviations = zip(*self._means, strict=True)
        return Intensity(
            low=float(np.median(lows)),
            high=float(np.median(highs)),
            minimum=float(min(lows)),
            maximum=float(max(highs)),
            mean=float(np.mean(means)),
            std=float(np.mean(deviations)),
        )

    def _class(self, value: int) -> ClassFingerprint:
        return ClassFingerprint(
            value=value,
            pixels=self._class_pixels[value],
            share=self._class_pixels[value] / self._class_pixels.total(),
            cases=self._class_cases[value],
            component_pixels=float(np.median(self._sizes.get(value) or [0])),
            thickness=round(float(np.median(self._thickness.get(value) or [0])), 2),
            thin_part=round(_low_tenth(self._parts.get(value) or [(0.0, 1.0)]), 2),
            clipped=round(float(np.mean(self._clipped.get(value) or [0])), 3),
        )


def body_of(values: NDArray[Any], corner: Any) -> NDArray[Any]:
    """Remove air from the values (K,) of an image: the value of its `corner`, if it covers at least MIN_AIR of them.

    Without this, the percentiles of a brain surrounded by air would describe the air, and clipping to them would cut
    off all bright structures. A masked-out surrounding counts as air too.
    """
    body = values[values != corner]
    is_air = 0 < body.size < (1 - MIN_AIR) * values.size
    return body if is_air else values.reshape(-1)


def _low_tenth(parts: list[tuple[float, float]]) -> float:
    """Return the width that a tenth of the parts falls below. `parts` are (width, weight) in pixels.

    The weight of a part is its diameter less one, so that lesions count and stray pixels do not.
    """
    widths, diameters = np.array(parts).T
    order = np.argsort(widths)
    share = np.cumsum(diameters[order]) / diameters.sum()
    return float(widths[order][np.searchsorted(share, 0.1)])


def _is_none_of(values: NDArray[Any], others: list[int]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = values != others[0]
    for other in others[1:]:
        found &= values != other
    return found


def count_values(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the distinct values of an array, ascending, and how often each occurs."""
    # Counting small non-negative integers needs no sorting, which np.unique would do.
    if values.dtype.kind in "iu" and values.min() >= 0 and values.max() < 2**16:
        counts = np.bincount(values.reshape(-1))
        present = np.flatnonzero(counts)
        return present, counts[present]
    return np.unique(values, return_counts=True)


def guess_modality(image: Image) -> str:
    """Guess the modality of an image whose file gives none. A volume with air near -1000 counts as CT."""
    if image.family == "raster":
        return {1: "greyscale", 3: "colour"}.get(image.channels, "multichannel")
    low = float(image.array.min())
    return "CT" if low <= -900 and low >= -5000 and float(image.array.max()) > 200 else "unknown"


def _spread(rows: NDArray[Any]) -> Spread:
    def numbers(row: NDArray[Any]) -> list[float]:
        return [int(item) if float(item).is_integer() else float(f"{item:.7g}") for item in row]

    return Spread(
        minimum=numbers(rows.min(axis=0)), median=numbers(np.median(rows, axis=0)), maximum=numbers(rows.max(axis=0))
    )
