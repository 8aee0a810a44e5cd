"""The synthetic example: drawn pictures, to try the platform without data. Every page calls it synthetic."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
from django.core.files.uploadedfile import SimpleUploadedFile
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from datasets.models import Dataset
from datasets.services import create_dataset_from_upload, rename_class
from inference.models import InferenceResult
from inference.services import create_inference
from medseg_site.tasks import advance_demo
from models_app.models import SegmentationModel
from models_app.services import create_model

NAME = "Synthetic cells (example)"
SIDE, PAIRS, TRAINING_SECONDS = 160, 24, 90
CELL, NUCLEUS = 1, 2


def start_demo(user: Any) -> Dataset:
    """Upload the drawn dataset. A worker then trains a model on it and segments an image.

    Raises MedSegError when the upload is refused.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index in range(PAIRS):
            image, labels = draw_cells(np.random.default_rng(index))
            archive.writestr(f"images/cells_{index:02d}.png", png(image))
            archive.writestr(f"masks/cells_{index:02d}.png", png(labels))
    upload = SimpleUploadedFile("synthetic-cells.zip", buffer.getvalue(), "application/zip")
    text = "Drawn by a program: round cells with nuclei on a noisy background. Not real data; for trying things out."
    dataset = create_dataset_from_upload(user=user, name=NAME, archive=upload, description=text, is_synthetic=True)
    advance_demo.apply_async(args=(dataset.pk,), countdown=1)
    return dataset


def advance(pk: int) -> bool:
    """Take the next step if it is possible now. Returns True while there are further steps."""
    dataset = Dataset.objects.filter(pk=pk).first()
    if dataset is None or dataset.status == "error":
        return False
    if dataset.status != "ready":
        return True
    model = dataset.models.first()
    if model is None:
        for value, name in ((CELL, "cell"), (NUCLEUS, "nucleus")):
            rename_class(user=dataset.created_by, dataset=dataset, value=value, name=name)
        hyperparameters = {"time_budget_seconds": TRAINING_SECONDS}
        create_model(user=dataset.created_by, name=NAME, dataset=dataset, hyperparameters=hyperparameters)
        return True
    if model.is_active:
        return True
    if model.status == "completed" and not model.inferences.exists():
        segment_new_image(model)
    return False


def segment_new_image(model: SegmentationModel) -> InferenceResult:
    """Segment a picture that is not in the dataset, and give its reference mask, so that the result gets a Dice."""
    image, labels = draw_cells(np.random.default_rng(10_000))
    files = [
        SimpleUploadedFile(name, png(array), "image/png")
        for name, array in (("new-cells.png", image), ("reference.png", labels))
    ]
    return create_inference(user=model.created_by, model=model, image=files[0], mask=files[1])


def draw_cells(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A greyscale picture and its label map, both uint8 (SIDE, SIDE)."""
    image, labels = Image.new("L", (SIDE, SIDE), 60), Image.new("L", (SIDE, SIDE), 0)
    for _ in range(int(rng.integers(4, 9))):
        x, y = rng.uniform(10, SIDE - 10, 2)
        radius = rng.uniform(10, 24)
        stretch = rng.uniform(0.7, 1.3)
        for value, size, shade in (
            (CELL, radius, rng.integers(105, 150)),
            (NUCLEUS, radius * 0.42, rng.integers(165, 210)),
        ):
            box = (x - size * stretch, y - size / stretch, x + size * stretch, y + size / stretch)
            ImageDraw.Draw(image).ellipse(box, fill=int(shade))
            ImageDraw.Draw(labels).ellipse(box, fill=value)
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(1.2)), np.float32)
    uneven = np.linspace(-15, 15, SIDE)[None] * rng.uniform(-1, 1)
    noisy = blurred + uneven + rng.normal(0, 14, blurred.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), np.asarray(labels).copy()


def png(array: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()
