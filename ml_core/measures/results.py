"""The types for the results of an evaluation.

ml_core.measures.metrics defines each number, and says how empty masks count. An undefined number is NaN, and null in
JSON.
"""

from __future__ import annotations

from dataclasses import dataclass

from ml_core.documents import Document, Number

Interval = tuple[Number, Number]
"""Lower and upper bound."""


@dataclass(frozen=True, kw_only=True)
class Scores(Document):
    """The metrics of one class in one case, or means of such metrics. Overlaps (dice to recall) are 0 to 1."""

    dice: Number
    iou: Number
    precision: Number
    recall: Number
    hd95: Number
    """95th percentile of the distance between the surfaces, in mm, or in pixels if the spacing is unknown."""
    nsd: Number
    """Share of both surfaces that lies within ml_core.measures.metrics.TOLERANCE of the other surface, 0 to 1."""
    volume_error: Number
    """Predicted minus reference volume, in `Metrics.volume_unit`; means are of absolute values."""
    volume_error_relative: Number
    """Volume error divided by the larger of the two volumes, -1 to 1; means are of absolute values."""


@dataclass(frozen=True, kw_only=True)
class Means(Scores):
    """Means over the cases in which a metric is defined, and the numbers of undefined and missed cases."""

    ci95: dict[str, Interval]
    """Field of Scores → 95 % interval of its mean; NaN if there are fewer than two patients or cases to draw."""
    n_cases: int
    """For one class, the cases in which it is defined; for the foreground as a whole, all cases."""
    undefined: int
    """Cases in which neither reference nor prediction has the class; for the foreground, the sum over its classes."""
    misses: int
    """Defined cases with a Dice of 0, summed over classes like `undefined`.

    The next three counts divide them by kind.
    """
    not_found: int
    """Misses with the class in the reference only."""
    misplaced: int
    """Misses with the class in both, without a common pixel."""
    false_alarms: int
    """Misses with the class in the prediction only."""


@dataclass(frozen=True, kw_only=True)
class OverallMeans(Means):
    """Means over all cases, for the foreground classes together."""

    n_defined: int
    """Cases in which a foreground class is defined."""
    n_units: int
    """Number of units that the bootstrap draws for the intervals: patients, and cases of no known patient."""


@dataclass(frozen=True, kw_only=True)
class Summary(OverallMeans):
    """The result of ml_core.measures.metrics.summarise."""

    per_class: list[Means]
    """Background first."""
    per_case: list[Scores]
    """For each case, means over the foreground classes that are defined in it."""


@dataclass(frozen=True, kw_only=True)
class ClassScores(Scores):
    """The metrics of one class in one case."""

    value: int
    """Label value."""


@dataclass(frozen=True, kw_only=True)
class NamedScores(ClassScores):
    """The metrics of one class in one case, with the class's name and colour for a page."""

    name: str
    color: str
    """#rrggbb."""


@dataclass(frozen=True, kw_only=True)
class ImageMetrics(Document):
    """The metrics of one image: means over its defined foreground classes (fields as in Scores), and each class."""

    dice: Number
    iou: Number
    precision: Number
    recall: Number
    hd95: Number
    nsd: Number
    per_class: list[NamedScores]
    """Background first."""
    unit: str
    """The unit of distances: "mm" or "px"."""


@dataclass(frozen=True, kw_only=True)
class CaseMetrics(Scores):
    """The metrics of one held-out case: means over its defined foreground classes, and each class."""

    name: str
    sample: int
    """Id of the case; on the platform, the id of the sample."""
    picture: bool
    """Whether a picture of the right and wrong pixels was kept."""
    confidence: float
    """Mean certainty (1 - entropy / log K) over the predicted foreground, 0 to 1."""
    per_class: list[ClassScores]
    """Background first."""


@dataclass(frozen=True, kw_only=True)
class ClassMetrics(Means):
    """The metrics of one class over all cases."""

    value: int
    """Label value."""
    name: str
    color: str
    """#rrggbb."""


@dataclass(frozen=True)
class CalibrationBin(Document):
    """The pixels whose winning class has a probability above `low` and up to `high`."""

    low: float
    high: float
    confidence: Number
    """Mean probability of the winning class."""
    accuracy: Number
    """Share of the pixels that were predicted right."""
    count: int
    """Number of pixels."""


@dataclass(frozen=True)
class Reliability(Document):
    """The calibration of a network (ml_core.measures.calibration)."""

    ece: Number
    """Expected calibration error over all pixels, 0 to 1."""
    ece_foreground: Number
    """Expected calibration error over the pixels whose reference or prediction is not background, 0 to 1."""
    bins: list[CalibrationBin]
    """The bins over all pixels."""
    bins_foreground: list[CalibrationBin]
    """The bins over the pixels of `ece_foreground`."""


@dataclass(frozen=True, kw_only=True)
class Metrics(OverallMeans):
    """The metrics of a model on its held-out cases, on full images in their own resolution."""

    per_class: list[ClassMetrics]
    """Background first."""
    per_case: list[CaseMetrics]
    evaluated_on: str
    """The part of the split: "test" or "val", or "given" for images that are not of the dataset."""
    held_out: int
    """Number of held-out cases; `n_cases` of them were evaluated."""
    unit: str
    """The unit of distances: "mm" or "px"."""
    volume_unit: str
    """The unit of `volume_error`: "mm³", "mm²", "voxels" or "px"."""
    calibration: Reliability
