"""What a dataset is: shapes, spacings, intensities and class shares, gathered one case at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ml_core.dataset.pose import Pose, PoseBuilder
from ml_core.documents import Document
from ml_core.io import Image
from ml_core.measures.metrics import bounding_box

SAMPLED_PIXELS = 2_000  # per case; enough for percentiles, little enough for 100,000 cases
MAX_CASES_OF_STRUCTURE = 50  # sizes and thicknesses are measured on the first cases, and on so many slices of a volume
MAX_SLICES_OF_STRUCTURE = 6
MIN_CASES_OF_STRUCTURE = 3  # and on no more than these, once MAX_PIXELS_OF_STRUCTURE were looked at: some seconds
MAX_PIXELS_OF_STRUCTURE = 40_000_000
SEARCHED_PIXELS = (
    500_000  # drawn of a case that is LARGE, to find foreground; small structures are looked for everywhere
)
LARGE = 4_000_000
CLIPPED = (0.5, 99.5)  # percentiles of an image between which its values are kept (ml_core.cases.preprocessing)
MIN_AIR = 0.25  # of an image has to be one value, that of its corner
MIN_FOREGROUND = 500  # pixels of a dataset that say what its foreground's intensities are


@dataclass(frozen=True)
class Spread(Document):
    """Of a number per axis, in array order ((z,) y, x): the least, the median and the greatest of all cases."""

    minimum: list[int | float]
    median: list[int | float]
    maximum: list[int | float]


@dataclass(frozen=True)
class Intensity(Document):
    """The values of the images, in their own units."""

    low: float
    """Median over the cases of the 0.5 percentile."""
    high: float
    """Median over the cases of the 99.5 percentile."""
    minimum: float
    """Least 0.5 percentile of a case."""
    maximum: float
    """Greatest 99.5 percentile of a case."""
    mean: float
    """Mean over the cases of their means."""
    std: float
    """Mean over the cases of their standard deviations."""


@dataclass(frozen=True)
class ForegroundIntensity(Document):
    """The values where a class other than the background is, in the images' own units."""

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
    """How many pixels (voxels) it has."""
    share: float
    """Of all pixels, 0 to 1."""
    cases: int
    """How many cases show it."""
    component_pixels: float
    """Median size of its connected parts, in pixels of a plane."""
    thickness: float
    """Typical width in pixels of a plane; 0 where none was measured."""
    thin_part: float
    """Width in pixels below which a tenth of its parts lies."""
    clipped: float
    """Share of its pixels beyond CLIPPED of their images, 0 to 1; 0 in colour images."""


@dataclass(frozen=True)
class Fingerprint(Document):
    """What a dataset is, as far as a plan depends on it. Sizes in pixels, spacings in mm, both in array order ((z,) y, x)."""

    n_cases: int
    dimensions: int
    """2 for pictures, 3 for volumes."""
    channels: int
    """1 to 16, of most images. Only 1 and 3 occur together."""
    modality: str
    """Of most images: "CT", "MR", …, "colour", "greyscale", "multichannel" or "unknown"."""
    families: dict[str, int]
    """File family ("raster", "nifti", "dicom") → number of images."""
    pose: Pose | None
    """How much pictures are alike as they lie; None for volumes and for few pictures."""
    shape: Spread
    spacing: Spread | None
    """None where no image says it."""
    intensity: Intensity
    foreground_intensity: ForegroundIntensity
    classes: list[ClassFingerprint]
    """In the order of their label values; the first is the background."""
    grouping: str = ""
    """What the dataset's split kept together; empty where the platform made no split."""
    mask_codes: dict[str, int] = field(default_factory=dict)
    """Colour in the masks (r << 16 | g << 8 | b, as text) → label value; empty where masks hold numbers."""


class FingerprintBuilder:
    """Add every case, then ask for the `result`. Memory does not grow with the size of the images."""

    def __init__(self) -> None:
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
        """`values`: the mask in label values on the image's grid; `counts`: pixels per value in it."""
        self._shapes[image.shape] += 1
        if image.spacing:
            self._spacings.append(tuple(float(step) for step in image.spacing))
        self._channels[image.channels] += 1
        self._modalities[image.modality or guess_modality(image)] += 1
        self._families[image.family] += 1
        if image.dimensions == 2:
            self._pose.add(image.array)
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
            places = self._places_inside(values.reshape(-1), min(counts))
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
        """Of each class the share that the image's own percentiles would cut off."""
        low, high = np.percentile(body, CLIPPED)
        beyond = (inside < low) | (inside > high)
        for value in np.unique(classes):
            self._clipped.setdefault(int(value), []).append(float(beyond[classes == value].mean()))

    def _places_inside(self, flat: NDArray[Any], background: int) -> NDArray[np.intp]:
        """Up to SAMPLED_PIXELS positions of other values, so that small structures are heard too."""
        found = self._rng_inside.integers(0, flat.size, size=SEARCHED_PIXELS if flat.size > LARGE else 0)
        found = found[flat[found] != background]
        if len(found) < SAMPLED_PIXELS:
            found = np.flatnonzero(flat != background)
        return found if len(found) <= SAMPLED_PIXELS else self._rng_inside.choice(found, SAMPLED_PIXELS, replace=False)

    def _add_structure(self, values: NDArray[Any], wanted: list[int]) -> None:
        """Sizes of the connected parts of each class, and how thick it is and they are, in pixels of a plane."""
        for value in wanted:
            slices = values[None] if values.ndim == 2 else values
            present = np.flatnonzero((slices == value).any(axis=(1, 2)))
            picked = present[np.linspace(0, len(present) - 1, min(len(present), MAX_SLICES_OF_STRUCTURE)).astype(int)]
            for mask in (slices[index] == value for index in picked):
                mask = mask[bounding_box(mask)]
                self._looked_at += mask.size
                parts, _ = ndimage.label(mask)
                sizes = np.bincount(parts.reshape(-1))[1:]
                self._sizes.setdefault(value, []).extend(sizes.tolist())
                # A strip of width w has a mean distance to its border of w / 4; pixels' centres lie half a pixel inside.
                depths = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
                self._thickness.setdefault(value, []).append(4 * (float(depths[mask].mean()) - 0.5))
                widths = 4 * (np.bincount(parts.reshape(-1), depths.reshape(-1))[1:] / sizes - 0.5)
                self._parts.setdefault(value, []).extend(
                    zip(widths.tolist(), (np.sqrt(sizes) - 1 + 1e-6).tolist(), strict=True)
                )

    def result(self) -> Fingerprint:
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
            classes=[self._class(value) for value in sorted(self._class_pixels)],
        )

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
    """(K,) values. Where one value, that of the corner, fills a good part of the image, it is air or a cut-out: without it.

    Otherwise the percentiles of a brain in much air would be those of the air, and clip all bright structures.
    """
    body = values[values != corner]
    is_air = 0 < body.size < (1 - MIN_AIR) * values.size
    return body if is_air else values.reshape(-1)


def _low_tenth(parts: list[tuple[float, float]]) -> float:
    """The thickness below which a tenth of the parts lies. Each counts by its diameter less one: lesions do, stray pixels do not."""
    widths, diameters = np.array(parts).T
    order = np.argsort(widths)
    share = np.cumsum(diameters[order]) / diameters.sum()
    return float(widths[order][np.searchsorted(share, 0.1)])


def count_values(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(the values that occur, ascending; how often each does), without sorting where the values are small numbers."""
    if values.dtype.kind in "iu" and values.min() >= 0 and values.max() < 2**16:
        counts = np.bincount(values.reshape(-1))
        present = np.flatnonzero(counts)
        return present, counts[present]
    return np.unique(values, return_counts=True)


def guess_modality(image: Image) -> str:
    """A word for an image that does not say what it is. Volumes whose air is near -1000 are taken for CT."""
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
