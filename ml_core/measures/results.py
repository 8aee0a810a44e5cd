"""The numbers of an evaluation as types. ml_core.measures.metrics says what each number means and how empty masks count.

Numbers are NaN where they are undefined, and null in JSON.
"""

from __future__ import annotations

from dataclasses import dataclass

from ml_core.documents import Document, Number

Interval = tuple[Number, Number]
"""Lower and upper bound."""


@dataclass(frozen=True, kw_only=True)
class Scores(Document):
    """One class in one case, or means of such numbers."""

    dice: Number
    iou: Number
    precision: Number
    recall: Number
    hd95: Number
    """95th percentile of the distance between the surfaces, in mm, or pixels where the spacing is unknown."""
    nsd: Number
    """Share of the surfaces within ml_core.measures.metrics.TOLERANCE of the other."""
    volume_error: Number
    """Predicted minus reference, in `Metrics.volume_unit`; means are of absolute values."""
    volume_error_relative: Number
    """The same as a share of the larger of both, -1 to 1; means are of absolute values."""


@dataclass(frozen=True, kw_only=True)
class Means(Scores):
    """Means over the cases in which they are defined, and how many cases were undefined or missed."""

    ci95: dict[str, Interval]
    """Field of Scores → 95 % interval of its mean, NaN where there are fewer than two patients or cases to draw."""
    n_cases: int
    """Of one class: cases in which it is defined; of all foreground classes: all cases."""
    undefined: int
    """Cases whose reference and prediction lack the class; of all foreground classes: summed over them."""
    misses: int
    """Defined cases with a Dice of 0, summed like `undefined`; the next three say which kind."""
    not_found: int
    """In the reference only."""
    misplaced: int
    """In both, without a pixel in common."""
    false_alarms: int
    """In the prediction only."""


@dataclass(frozen=True, kw_only=True)
class OverallMeans(Means):
    """Over all cases, for the foreground classes together."""

    n_defined: int
    """Cases in which a foreground class is defined."""
    n_units: int
    """Patients, or cases of no known patient, that the intervals are drawn from."""


@dataclass(frozen=True, kw_only=True)
class Summary(OverallMeans):
    """What ml_core.measures.metrics.summarise makes of the scores alone."""

    per_class: list[Means]
    """Background first."""
    per_case: list[Scores]
    """Means over the foreground classes that are defined in the case."""


@dataclass(frozen=True, kw_only=True)
class ClassScores(Scores):
    """One class in one case."""

    value: int
    """Label value."""


@dataclass(frozen=True, kw_only=True)
class NamedScores(ClassScores):
    """The same with what a page shows of the class."""

    name: str
    color: str
    """#rrggbb."""


@dataclass(frozen=True, kw_only=True)
class ImageMetrics(Document):
    """One image against its reference: means over the defined foreground classes (see Scores), and each class."""

    dice: Number
    iou: Number
    precision: Number
    recall: Number
    hd95: Number
    nsd: Number
    per_class: list[NamedScores]
    """Background first."""
    unit: str
    """Of distances: "mm" or "px"."""


@dataclass(frozen=True, kw_only=True)
class CaseMetrics(Scores):
    """One case: means over its defined foreground classes."""

    name: str
    sample: int
    """Id of the case; on the platform, of the sample."""
    picture: bool
    """Whether a picture of right and wrong was kept."""
    confidence: float
    """Mean certainty over the predicted foreground, 0 to 1."""
    per_class: list[ClassScores]


@dataclass(frozen=True, kw_only=True)
class ClassMetrics(Means):
    """One class over all cases."""

    value: int
    """Label value."""
    name: str
    color: str
    """#rrggbb."""


@dataclass(frozen=True)
class CalibrationBin(Document):
    """Pixels whose winning class has a probability above `low` and up to `high`."""

    low: float
    high: float
    confidence: Number
    """Mean probability of the winning class."""
    accuracy: Number
    """Share of the pixels that are right."""
    count: int
    """Number of pixels."""


@dataclass(frozen=True)
class Reliability(Document):
    """How far probabilities can be believed (ml_core.measures.calibration)."""

    ece: Number
    """Expected calibration error over all pixels, 0 to 1."""
    ece_foreground: Number
    """The same over the pixels whose reference or prediction is not background."""
    bins: list[CalibrationBin]
    bins_foreground: list[CalibrationBin]


@dataclass(frozen=True, kw_only=True)
class Metrics(OverallMeans):
    """A model on its held-out cases: full images in their own resolution."""

    per_class: list[ClassMetrics]
    """Background first."""
    per_case: list[CaseMetrics]
    evaluated_on: str
    """ "test", "val", or "given" for images that came from elsewhere."""
    held_out: int
    """Cases that are held out in all; `n_cases` of them were evaluated."""
    unit: str
    """Of distances: "mm" or "px"."""
    volume_unit: str
    """Of `volume_error`: "mm³", "mm²", "voxels" or "px"."""
    calibration: Reliability
