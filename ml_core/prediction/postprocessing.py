"""Cleaning of label maps: largest component, minimum size, filled holes; each used only where validation cases got better."""

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
from ml_core.measures.metrics import bounding_box, overlap_metrics

MINIMUM_SIZES = (16, 64, 256, 1024)
MARGIN = 0.001  # of mean Dice: less is chance with the few validation cases there are, and not worth another step
MIN_CASES = 3  # with the class, or found in: fewer say too little about the next image


@dataclass(frozen=True)
class Cleaning:
    """What is done to one class."""

    largest_component: bool = False
    """Keep only the largest connected component."""
    minimum_size: int = 0
    """Remove components of fewer pixels (voxels) of the input's own grid; 0 keeps all."""
    fill_holes: bool = False
    """Background that the class encloses becomes the class; other classes inside of it stay."""


@dataclass(frozen=True)
class Postprocessing:
    """A Cleaning per class position; classes that are not named, and always the background (0), stay as they are."""

    classes: Mapping[int, Cleaning] = field(default_factory=dict)

    @property
    def is_active(self) -> bool:
        """Whether it does anything."""
        return any(cleaning != Cleaning() for cleaning in self.classes.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: class position as text → fields of Cleaning."""
        return {str(index): asdict(cleaning) for index, cleaning in sorted(self.classes.items())}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Postprocessing:
        """Raises ConfigError (code postprocessing) for what `to_dict` cannot have written."""
        try:
            classes = {int(index): Cleaning(**fields) for index, fields in values.items()}
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError("postprocessing", "The stored post-processing cannot be read.", "Train again.") from error
        return cls(classes)


@dataclass(frozen=True)
class Candidate(Document):
    """One step that was tried on one class. Dice is the mean over the cases where it is defined, misses count as 0."""

    name: str
    """In words, for people."""
    dice_before: Number
    """Without it."""
    dice: Number
    """With it."""
    misses_before: int
    """Cases with the class in which nothing of it was found, without it."""
    misses: int
    """The same with it."""
    used: bool
    """Whether it helped."""


@dataclass(frozen=True)
class ClassReport(Document):
    """What was tried on one foreground class."""

    index: Annotated[int, Field(alias="class")]
    """The position of the class."""
    dice: Number
    """The mean before; NaN where no case is defined."""
    misses: int
    """Before."""
    candidates: list[Candidate]
    """In the order in which they were tried."""


@dataclass(frozen=True)
class Report(Document):
    """What was measured to choose a post-processing, for the model package."""

    margin: float
    """The gain in mean Dice that a step had to bring."""
    cases: int
    """On how many cases it was measured."""
    classes: list[ClassReport]
    """Of each foreground class."""


def apply(labels: NDArray[np.uint8], how: Postprocessing) -> NDArray[np.uint8]:
    """Class positions (H, W) or (D, H, W) → the same, cleaned; the input itself where nothing is to do.

    Class after class, small to large position: removed pixels become background, then holes are filled. Pixels that touch
    by a corner are connected, and a hole is enclosed when no path by edges (faces) leads out of it to the image's border.
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
    """What helps on validation cases, given as (predicted, reference) class positions; `classes` counts the background.

    For each foreground class: of largest component and MINIMUM_SIZES the best, then hole filling on top of it; each only if
    the mean Dice (undefined cases left out, misses as 0: ml_core.measures.metrics) of MIN_CASES or more rises by MARGIN or more, twice as
    many of them get better as get worse, and there are no more misses. The largest component alone is kept only where no
    reference has several. One pass over the cases, one in memory at a time.
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
            name: _mean_and_misses(found)[0]
            for name, found in ranked.items()
            if _helps(before, found) and not (first[name].largest_component and index in scattered)
        }
        best = max(helpful, key=lambda name: helpful[name], default="")
        cleaning = first[best] if best else Cleaning()
        for name, found in ranked.items():
            candidates.append(_candidate(name, before, found, used=name == best))
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
    """Add the Dice of one class in one case under every cleaning. Other classes are taken as they are."""
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
            kept = kept | _holes(kept) & (free | mask)  # what was removed is background by then
        tp = int(np.count_nonzero(kept & truth))
        values.append(overlap_metrics(tp, int(np.count_nonzero(kept)) - tp, n_truth - tp)["dice"])


def _components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """Numbered components of a mask, and the size of each number, 0 for what is outside."""
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
    """What ndimage.binary_fill_holes adds, in one pass instead of one for each pixel of the longest way out of the mask."""
    holes = np.zeros_like(mask)
    if mask.any():
        box = bounding_box(mask)
        numbers, found = ndimage.label(~mask[box])
        enclosed = np.ones(found + 1, bool)
        for axis in range(mask.ndim):
            enclosed[np.take(numbers, [0, -1], axis)] = False
        enclosed[0] = False  # the mask itself
        holes[box] = enclosed[numbers]
    return holes


def _mean_and_misses(dice: list[float]) -> tuple[float, int]:
    values = np.array(dice)
    defined = values[~np.isnan(values)]
    return (float(defined.mean()) if len(defined) else float("nan")), int(np.count_nonzero(defined == 0))


def _helps(before: list[float], after: list[float]) -> bool:
    """NaN of all cases is never better: where no case has the class left, nothing shows what would be lost."""
    (mean_before, misses_before), (mean, misses) = _mean_and_misses(before), _mean_and_misses(after)
    change = np.nan_to_num(after, nan=1.0) - np.nan_to_num(before, nan=1.0)  # what is undefined is a right "not there"
    better, worse = int((change > 0).sum()), int((change < 0).sum())
    enough = int(np.isfinite(before).sum()) >= MIN_CASES
    return enough and mean - mean_before >= MARGIN and misses <= misses_before and better >= 2 * worse


def _candidate(name: str, before: list[float], after: list[float], *, used: bool) -> Candidate:
    (mean_before, misses_before), (mean, misses) = _mean_and_misses(before), _mean_and_misses(after)
    return Candidate(name, mean_before, mean, misses_before, misses, used)
