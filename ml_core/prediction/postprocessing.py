"""Cleans label maps: keeps the largest component, removes small ones, fills holes.

Each step is used only for classes whose validation cases score better with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from ml_core.documents import Document, Number
from ml_core.errors import ConfigError
from ml_core.measures.metrics import bounding_box, overlap_metrics, without_ignored

MINIMUM_SIZES = (16, 64, 256, 1024)
# The gain in mean Dice that a step must bring. With few validation cases a smaller gain may be chance.
MARGIN = 0.001
# The least number of cases whose Dice is defined. Fewer say too little about the next image.
MIN_CASES = 3


@dataclass(frozen=True)
class Cleaning:
    """How one class is cleaned."""

    largest_component: bool = False
    """Keep only the largest connected component."""
    minimum_size: int = 0
    """Remove components of fewer pixels (voxels) of the input's own grid; 0 keeps all."""
    fill_holes: bool = False
    """Turn background that the class encloses into the class. Other classes inside it stay."""


@dataclass(frozen=True)
class Postprocessing:
    """A Cleaning for each class position. Classes without one stay as they are, and so does the background (0)."""

    classes: Mapping[int, Cleaning] = field(default_factory=dict)

    @property
    def is_active(self) -> bool:
        """Whether any class is cleaned."""
        return any(cleaning != Cleaning() for cleaning in self.classes.values())

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON: class position → fields of its Cleaning, such as {"1": {"fill_holes": True, …}}."""
        return {str(index): asdict(cleaning) for index, cleaning in sorted(self.classes.items())}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Postprocessing:
        """Read a dict that `to_dict` returned. Raises ConfigError (code postprocessing) if the dict cannot be one."""
        try:
            classes = {int(index): Cleaning(**fields) for index, fields in values.items()}
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError("postprocessing", "The stored post-processing cannot be read.", "Train again.") from error
        return cls(classes)


@dataclass(frozen=True)
class Candidate(Document):
    """One step that was tried on one class.

    Dice is the mean over the cases where it is defined. A miss is a case that has the class and in which nothing of it
    was found. It counts as 0.
    """

    name: str
    """The name of the step, for people."""
    dice_before: Number
    """The mean Dice without the step."""
    dice: Number
    """The mean Dice with the step."""
    misses_before: int
    """The number of misses without the step."""
    misses: int
    """The number of misses with the step."""
    used: bool
    """Whether the model uses the step."""


@dataclass(frozen=True)
class ClassReport(Document):
    """The steps that were tried on one foreground class."""

    index: Annotated[int, Field(alias="class")]
    """The position of the class."""
    dice: Number
    """The mean Dice without any cleaning; NaN if it is defined for no case."""
    misses: int
    """The number of misses without any cleaning."""
    candidates: list[Candidate]
    """The steps, in the order in which they were tried."""


@dataclass(frozen=True)
class Report(Document):
    """The measurements behind a choice of post-processing; the model package keeps them."""

    margin: float
    """The gain in mean Dice that a step had to bring."""
    cases: int
    """The number of cases that were measured."""
    classes: list[ClassReport]
    """A report for each foreground class."""


def apply(labels: NDArray[np.uint8], how: Postprocessing) -> NDArray[np.uint8]:
    """Clean class positions (H, W) or (D, H, W); returns the input itself if there is nothing to do.

    Classes are cleaned one after the other, by ascending position: removed pixels become background, then holes are
    filled. Pixels are connected if they touch at a corner. A hole is background from which no path across edges (faces
    in a volume) leads to the border of the image.
    """
    if not how.is_active:
        return labels
    cleaned = labels.copy()
    for index, cleaning in sorted(how.classes.items()):
        mask = cleaned == index
        if not mask.any():
            continue
        box = bounding_box(mask)
        mask, part = mask[box], cleaned[box]
        kept = _keep(mask, *_components(mask), cleaning)
        part[mask & ~kept] = 0
        if cleaning.fill_holes:
            part[_holes(kept) & (part == 0)] = index
    return cleaned


def choose(cases: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]], classes: int) -> tuple[Postprocessing, Report]:
    """Choose the steps that help on validation cases, given as (predicted, reference) class positions uint8.

    `classes` is the number of classes with the background. For each foreground class the best of "largest component"
    and MINIMUM_SIZES is chosen, then hole filling on top of it. A step is used only if the class has a defined Dice in
    MIN_CASES or more cases, the mean Dice (undefined cases left out, misses as 0: ml_core.measures.metrics) rises by
    MARGIN or more, at least twice as many cases get better as get worse, and the number of misses does not rise.
    "Largest component" is ruled out if any reference has several components.

    The cases are read in one pass, so that only one is in memory at a time.
    """
    first = {"largest component": Cleaning(largest_component=True)}
    first |= {f"minimum size {size}": Cleaning(minimum_size=size) for size in MINIMUM_SIZES}
    tried = [Cleaning(), *first.values()]
    scores: dict[int, dict[tuple[Cleaning, bool], list[float]]] = {
        index: {(cleaning, fill): [] for cleaning in tried for fill in (False, True)} for index in range(1, classes)
    }
    n_cases, scattered = 0, set[int]()
    for predicted, reference in cases:
        n_cases += 1
        reference, predicted = without_ignored(reference, predicted)
        for index, table in scores.items():
            _score(predicted, reference, index, table)
            if index not in scattered and ndimage.label(reference == index, np.ones((3,) * reference.ndim))[1] > 1:
                scattered.add(index)
    chosen, rows = {}, []
    for index, table in scores.items():
        before = table[Cleaning(), False]
        candidates: list[Candidate] = []
        ranked = {name: table[cleaning, False] for name, cleaning in first.items()}
        helpful = {
            name: _mean_and_misses(values)[0]
            for name, values in ranked.items()
            if _helps(before, values) and not (first[name].largest_component and index in scattered)
        }
        best = max(helpful, key=lambda name: helpful[name], default="")
        cleaning = first[best] if best else Cleaning()
        for name, values in ranked.items():
            candidates.append(_candidate(name, before, values, used=name == best))
        base, filled = ranked[best] if best else before, table[cleaning, True]
        fill = _helps(base, filled)
        candidates.append(_candidate("fill holes", base, filled, used=fill))
        if best or fill:
            chosen[index] = Cleaning(cleaning.largest_component, cleaning.minimum_size, fill)
        dice, misses = _mean_and_misses(before)
        rows.append(ClassReport(index, dice, misses, candidates))
    return Postprocessing(chosen), Report(MARGIN, n_cases, rows)


def _score(
    predicted: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    index: int,
    table: dict[tuple[Cleaning, bool], list[float]],
) -> None:
    """Append to `table` the Dice of one class in one case with every cleaning. Other classes are not cleaned."""
    mask, truth = predicted == index, reference == index
    n_truth = int(np.count_nonzero(truth))
    if not mask.any():
        for values in table.values():
            values.append(overlap_metrics(0, 0, n_truth)["dice"])
        return
    box = bounding_box(mask)
    mask, truth, free = mask[box], truth[box], predicted[box] == 0
    components = _components(mask)
    for (cleaning, fill), values in table.items():
        kept = _keep(mask, *components, cleaning)
        if fill:
            # Removed pixels of the class count as background, as they do in `apply`.
            kept = kept | _holes(kept) & (free | mask)
        tp = int(np.count_nonzero(kept & truth))
        values.append(overlap_metrics(tp, int(np.count_nonzero(kept)) - tp, n_truth - tp)["dice"])


def _components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """Number the connected components of a mask. Returns (number of each pixel, count of pixels for each number).

    Pixels outside the mask have number 0. Its count is set to 0, so that it is never the largest component.
    """
    numbers, _ = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    sizes = np.bincount(numbers.ravel())
    sizes[0] = 0
    return numbers, sizes


def _keep(
    mask: NDArray[np.bool_], numbers: NDArray[np.int32], sizes: NDArray[np.intp], cleaning: Cleaning
) -> NDArray[np.bool_]:
    if cleaning.largest_component:
        mask = numbers == sizes.argmax()
        sizes = np.where(np.arange(len(sizes)) == sizes.argmax(), sizes, 0)
    return (sizes >= cleaning.minimum_size)[numbers] & mask if cleaning.minimum_size else mask


def _holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask of the pixels that ndimage.binary_fill_holes would add.

    That function grows the outside pixel by pixel, which takes many passes. Numbering the components takes one pass.
    """
    holes = np.zeros_like(mask)
    if mask.any():
        box = bounding_box(mask)
        numbers, count = ndimage.label(~mask[box])
        enclosed = np.ones(count + 1, bool)
        for axis in range(mask.ndim):
            enclosed[np.take(numbers, [0, -1], axis)] = False
        # Number 0 is the mask itself.
        enclosed[0] = False
        holes[box] = enclosed[numbers]
    return holes


def _mean_and_misses(dice: list[float]) -> tuple[float, int]:
    values = np.array(dice)
    defined = values[~np.isnan(values)]
    return (float(defined.mean()) if len(defined) else float("nan")), int(np.count_nonzero(defined == 0))


def _helps(before: list[float], after: list[float]) -> bool:
    """Whether a step is used, by the rule that `choose` states.

    A mean of NaN is never better: if no case has the class any more, nothing shows what would be lost.
    """
    (mean_before, misses_before), (mean, misses) = _mean_and_misses(before), _mean_and_misses(after)
    # An undefined Dice means that the class is in neither mask: a correct answer, which counts as 1.
    change = np.nan_to_num(after, nan=1.0) - np.nan_to_num(before, nan=1.0)
    better, worse = int((change > 0).sum()), int((change < 0).sum())
    enough = int(np.isfinite(before).sum()) >= MIN_CASES
    return enough and mean - mean_before >= MARGIN and misses <= misses_before and better >= 2 * worse


def _candidate(name: str, before: list[float], after: list[float], *, used: bool) -> Candidate:
    (mean_before, misses_before), (mean, misses) = _mean_and_misses(before), _mean_and_misses(after)
    return Candidate(name, mean_before, mean, misses_before, misses, used)
