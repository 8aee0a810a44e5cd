"""The final numbers of a model: held-out cases, read from their files, in their own resolution, as an inference would be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from ml_core.data import Case, label_indices
from ml_core.io import Image, display_slice, read_image, read_mask
from ml_core.metrics import NAMES, case_metrics, summarise
from ml_core.predictor import Predictor
from ml_core.preprocessing import labels_to_slices

FOUND, MISSED, TOO_MUCH = (47, 179, 68), (214, 57, 57), (66, 153, 225)
PICTURE_SIDE = 512
MAX_PICTURES = 200


def evaluate(
    predictor: Predictor,
    cases: list[Case],
    *,
    evaluated_on: str,
    pictures: Path | None = None,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Metrics per class and per case (ml_core.metrics says the rules), and a picture of what was right and wrong per case.

    `pictures`: a folder for <case id>.png, or None. Distances are in mm when every case has a spacing, else in pixels.
    """
    plan = predictor.plan
    rows: list[list[dict[str, float]]] = []
    pictured: set[int] = set()
    loaded = [read_image(case.image) for case in cases[:1]]
    unit = "mm" if loaded and loaded[0].spacing else "px"
    for position, case in enumerate(cases):
        image = read_image(case.image)
        reference = label_indices(read_mask(case.mask, like=image).values, plan.class_values, case.name)
        predicted = predictor.predict(image).indices
        rows.append(case_metrics(reference, predicted, len(plan.class_values), image.spacing if unit == "mm" else None))
        if pictures is not None and len(pictured) < MAX_PICTURES:
            picture = error_picture(image, reference, predicted)
            picture.save(pictures / f"{case.id}.png")
            pictured.add(case.id)
        on_case(position + 1, len(cases))
    metrics = summarise(rows)
    classes = list(zip(plan.class_values, plan.class_names, plan.class_colors, strict=True))
    for row, (value, name, color) in zip(metrics["per_class"], classes, strict=True):
        row.update(value=value, name=name, color=color)
    for headline, row, case in zip(metrics["per_case"], rows, cases, strict=True):
        per_class = [
            {"value": value, **{key: entry[key] for key in NAMES}}
            for entry, (value, _, _) in zip(row, classes, strict=True)
        ]
        headline.update(name=case.name, sample=case.id, picture=case.id in pictured, per_class=per_class)
    return {**metrics, "evaluated_on": evaluated_on, "unit": unit}


def error_picture(image: Image, reference: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> PILImage.Image:
    """The slice with the most wrong pixels: found in green, missed in red, too much in blue, over the image."""
    reference_slices, predicted_slices = (labels_to_slices(labels, image, 0) for labels in (reference, predicted))
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
