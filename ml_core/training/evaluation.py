"""The final metrics of a model, measured on whole held-out images in their own resolution, as a user would get them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from ml_core.cases.preprocessing import labels_to_slices
from ml_core.dataset.case import Case, spread_order
from ml_core.dataset.checks import check_pair, naming
from ml_core.io import Image, display_slice, read_image, read_mask
from ml_core.measures.calibration import Calibration
from ml_core.measures.metrics import case_metrics, summarise, volume_unit, without_ignored
from ml_core.measures.results import CaseMetrics, ClassMetrics, ClassScores, Means, Metrics, Scores
from ml_core.planning.budget import NO_DEADLINE, Deadline
from ml_core.planning.plan import Plan
from ml_core.prediction.predictor import Predictor

FOUND, MISSED, TOO_MUCH = (47, 179, 68), (214, 57, 57), (66, 153, 225)
PICTURE_SIDE = 512
MAX_PICTURES = 200


def evaluate(
    predictors: Sequence[Predictor],
    cases: Sequence[Case],
    *,
    evaluated_on: str,
    pictures: Path | None = None,
    on_case: Callable[[int, int], None] = lambda done, total: None,
    deadline: Deadline = NO_DEADLINE,
) -> Metrics:
    """Measure the metrics of each class and case (rules: ml_core.measures.metrics) and the calibration; draw pictures.

    predictors: the predictor of each case. pictures: the folder for <case id>.png of the first MAX_PICTURES evaluated
    cases; None for no pictures. deadline: one case is always evaluated, and another only if it is expected to end in
    time. The evaluated cases are spread evenly over all cases. `Metrics.held_out` is the number of all cases.
    Distances are in mm if the first case has a spacing, otherwise in pixels. A later case without a spacing is measured
    with that of the first. Raises ImageError for a file that cannot be read, or a mask that does not fit its image.
    """
    plan = predictors[0].plan
    usual = read_image(cases[0].image).spacing
    unit = "mm" if usual else "px"
    calibration = Calibration()
    scored = _predict_and_score(predictors, cases, usual, calibration, pictures, on_case, deadline)
    summary = summarise(
        [item.scores for item in scored], groups=[item.case.group or f"case {item.case.id}" for item in scored]
    )
    per_case = [item.metrics(means, plan) for means, item in zip(summary.per_case, scored, strict=True)]
    return Metrics(
        **{**vars(summary), "per_class": _named(summary.per_class, plan), "per_case": per_case},
        evaluated_on=evaluated_on,
        held_out=len(cases),
        unit=unit,
        volume_unit=volume_unit(plan.dimensions, unit),
        calibration=calibration.result(),
    )


def _named(means: list[Means], plan: Plan) -> list[ClassMetrics]:
    classes = zip(plan.class_values, plan.class_names, plan.class_colors, strict=True)
    return [
        ClassMetrics(**vars(row), value=value, name=name, color=color)
        for row, (value, name, color) in zip(means, classes, strict=True)
    ]


@dataclass(frozen=True)
class _ScoredCase:
    """One evaluated case."""

    case: Case
    scores: list[Scores]
    """The scores of each class."""
    confidence: float
    pictured: bool

    def metrics(self, means: Scores, plan: Plan) -> CaseMetrics:
        """Return the metrics of this case. `means`: its scores averaged over the foreground classes."""
        per_class = [
            ClassScores(**vars(row), value=value) for row, value in zip(self.scores, plan.class_values, strict=True)
        ]
        return CaseMetrics(
            **vars(means),
            name=self.case.name,
            sample=self.case.id,
            picture=self.pictured,
            confidence=round(self.confidence, 4),
            per_class=per_class,
        )


def _predict_and_score(
    predictors: Sequence[Predictor],
    cases: Sequence[Case],
    usual: tuple[float, ...] | None,
    calibration: Calibration,
    pictures: Path | None,
    on_case: Callable[[int, int], None],
    deadline: Deadline,
) -> list[_ScoredCase]:
    """Evaluate as many cases as there is time for. Returns them in the order of `cases`.

    usual: the spacing in mm for a case that has none of its own; None to measure all cases in pixels.
    """
    plan, begun = predictors[0].plan, deadline.clock()
    scored: dict[int, _ScoredCase] = {}
    for position in range(len(cases)) if deadline.at is None else spread_order(len(cases)):
        done = len(scored)
        if done and deadline.left() < (deadline.clock() - begun) / done:
            break
        case = cases[position]
        image, reference = _read(case, plan)
        reference_slices = labels_to_slices(reference, image, plan.preprocessing.slice_axis)

        def calibrate(
            first: int, probabilities: NDArray[np.float32], reference_slices: NDArray[np.uint8] = reference_slices
        ) -> None:
            calibration.add(np.moveaxis(probabilities, 1, 0), reference_slices[first : first + len(probabilities)])

        prediction = predictors[position].predict(image, calibrate)
        spacing = (image.spacing or usual) if usual else None
        scores = case_metrics(reference, prediction.indices, len(plan.class_values), spacing)
        pictured = pictures is not None and done < MAX_PICTURES
        if pictures is not None and pictured:
            error_picture(image, reference, prediction.indices).save(pictures / f"{case.id}.png")
        scored[position] = _ScoredCase(case, scores, prediction.confidence, pictured)
        on_case(done + 1, len(cases))
    return [scored[position] for position in sorted(scored)]


def caveats(metrics: Metrics, *, grouping: str, folds: int) -> list[str]:
    """Return the warnings that a reader of the metrics needs, one or two sentences each.

    grouping: `Split.grouping` of ml_core.dataset.splits. folds: the number of cross-validation folds; 1 without them.
    """
    sentences = []
    if metrics.n_cases < metrics.held_out:
        sentences.append(
            f"Only {metrics.n_cases} of the {metrics.held_out} held-out cases could be evaluated within the time "
            "budget. They are spread evenly over all."
        )
    if metrics.evaluated_on == "val" and folds > 1:
        sentences.append("Each case was predicted by the networks that had not learnt from it (cross-validation).")
    if "one patient" in grouping:
        sentences.append("All images come from one patient, so the numbers say little about other patients.")
    if metrics.evaluated_on == "val":
        sentences.append(
            "The dataset is too small for a test part of its own, so the numbers come from the cases on which the best "
            "weights were chosen. They are a little too good."
        )
    return sentences


def _read(case: Case, plan: Plan) -> tuple[Image, NDArray[np.uint8]]:
    """Read the image of a case, and its mask as class positions.

    Raises ImageError, with `file` set, if a file cannot be read or the mask does not fit the image.
    """
    with naming(case.name):
        image = read_image(case.image)
        mask = read_mask(case.mask, like=image)
        check_pair(image, mask)
    return image, case.indices(mask, plan.class_values, plan.fingerprint.ignored)


def error_picture(image: Image, reference: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> PILImage.Image:
    """Draw the slice with the most wrong pixels: correct foreground in green, missed in red, too much in blue."""
    compared = without_ignored(reference, predicted)
    reference_slices, predicted_slices = (labels_to_slices(labels, image, 0) for labels in compared)
    wrong = (reference_slices != predicted_slices).reshape(len(reference_slices), -1).sum(axis=1)
    index = int(wrong.argmax())
    pixels = display_slice(image, index if image.dimensions == 3 else None).astype(np.float32)
    truth, guess = reference_slices[index], predicted_slices[index]
    for chosen, color in (
        ((truth == guess) & (truth > 0), FOUND),
        ((truth != guess) & (truth > 0), MISSED),
        ((truth != guess) & (truth == 0), TOO_MUCH),
    ):
        pixels[chosen] = pixels[chosen] * 0.5 + np.array(color, np.float32) * 0.5
    picture = PILImage.fromarray(np.rint(pixels).astype(np.uint8))
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    return picture
