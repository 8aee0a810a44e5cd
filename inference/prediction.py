"""The worker's side of an inference: read the image, predict, store the label map, write the row."""

from __future__ import annotations

import io
import logging
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cachetools import LRUCache
from django.conf import settings
from django.db import transaction
from numpy.typing import NDArray
from PIL import Image as PILImage

from inference.batches import close_batch_if_done
from inference.models import InferenceResult
from medseg_site.shared.catalogue import manifests
from medseg_site.shared.jobs.claim import Claim
from medseg_site.shared.jobs.run import Work, run
from medseg_site.shared.storage import objects as storage
from medseg_site.shared.storage import scratch
from ml_core.dataset.case import label_indices
from ml_core.dataset.checks import check_pair, naming
from ml_core.dataset.classes import reference_values
from ml_core.errors import ImageError, MLError, TrainingError
from ml_core.io import Image, read_image, read_mask, write_label_map
from ml_core.measures.metrics import case_metrics, summarise
from ml_core.measures.results import ImageMetrics, NamedScores
from ml_core.prediction.predictor import Predictor, Segmentation
from models_app.models import SegmentationModel

log = logging.getLogger(__name__)

LABEL_VALUES = "Send a mask with the label values that the model's classes have."


class _WarmModels:
    """Loaded models, bounded by bytes: the least recently used one goes first. A process makes one prediction at a time."""

    def __init__(self, max_bytes: int) -> None:
        # One that is larger than all of it is kept alone: the next image is likely to be for it too.
        self._loaded: LRUCache[str, Predictor] = LRUCache(max_bytes, lambda predictor: min(predictor.nbytes, max_bytes))

    def get(self, model: SegmentationModel) -> Predictor:
        # The weights themselves: a model that was trained further is another one.
        key = model.checksum
        if key not in self._loaded:
            started = time.perf_counter()
            self._loaded[key] = Predictor.load(storage.fetch(model.s3_key, model.checksum))
            log.info("loaded %s in %.2f s", model, time.perf_counter() - started)
        return self._loaded[key]


_warm = _WarmModels(settings.MEDSEG_MODEL_CACHE_BYTES)


def predict(pk: int) -> None:
    """Segment one image. The row ends as completed, cancelled, or failed with the reason."""
    run(_Prediction(), pk)


class _Prediction(Work[InferenceResult]):
    model = InferenceResult
    TOO_LONG = "The segmentation took longer than its time limit. Use a smaller image."
    UNEXPECTED = "The segmentation ended unexpectedly ({error}). Try again; if it fails again, see the worker's log."

    def do(self, job: Claim[InferenceResult]) -> None:
        with scratch.scratch_folder(f"inference-{job.row.pk}") as folder:
            _predict(job, folder)

    def refusal_of(self, row: InferenceResult, error: Exception) -> str | None:
        if isinstance(error, ImageError):
            return f"{error.file or row.image_name}: {error}"
        if isinstance(error, FileNotFoundError):
            return "The image or the model is not in storage any more. Send the image again, or train again."
        return str(error) if isinstance(error, MLError) else None

    def forget(self, row: InferenceResult) -> None:
        storage.delete_prefix(storage.object_key("inferences", row.uuid))

    def at_the_end(self, row: InferenceResult) -> None:
        if row.batch_id:
            close_batch_if_done(row.batch_id)


def _predict(job: Claim[InferenceResult], folder: Path) -> None:
    row = job.row
    if row.model is None or not row.model.is_usable:
        raise MLError("no_model", "The model was deleted.", "Choose another model.")
    started = time.perf_counter()
    with job.kept_alive():
        image = read_image(storage.fetch(row.input_image_s3_key, row.input_sha256))
        # A beat also notices that somebody wishes to cancel.
        job.beat()
        predictor = _warm.get(row.model)
        found = predictor.predict(image)
        job.beat()
        path = write_label_map(found.values, image, folder)
        metrics, remarks = _score(row, image, found, predictor) if row.reference_key else (None, [])
        certainty = _store_certainty(row, image, found, folder)
        stored = storage.store_file(storage.object_key("inferences", row.uuid, path.name), path)
        columns = {
            "output_image_s3_key": stored.key,
            "output_sha256": stored.sha256,
            "confidence": round(found.confidence, 4),
            "certainty_key": certainty.key,
            "certainty_sha256": certainty.sha256,
            "shape": list(image.shape),
            "spacing": [float(step) for step in image.spacing] if image.spacing else None,
            "seconds": round(time.perf_counter() - started, 4),
            "classes": _class_rows(found.indices, row.model.classes, image),
            "metrics": metrics.to_json() if metrics else None,
            "warnings": [*found.warnings, *remarks],
        }
        # A request waits, so the row is not read again.
        columns = manifests.store_done(row, columns | job.last_words(), is_fresh=True)
    with transaction.atomic():
        job.finish(**columns)


def _store_certainty(row: InferenceResult, image: Image, found: Segmentation, folder: Path) -> storage.StoredObject:
    """Store the map of certainty on the image's own grid, uint8 with 255 for certain: PNG, or NIfTI for volumes."""
    levels = np.rint(found.certainty.astype(np.float32) * 255).astype(np.uint8)
    key = partial(storage.object_key, "inferences", row.uuid)
    if image.dimensions == 2 and image.family != "nifti":
        # A request waits: little compression, and nothing is written to the disk first.
        png = io.BytesIO()
        PILImage.fromarray(levels).save(png, "PNG", compress_level=1)
        return storage.store_bytes(key("certainty.png"), png.getvalue())
    place = folder / "certainty"
    place.mkdir()
    return storage.store_file(key("certainty.nii.gz"), write_label_map(levels, image, place))


def _class_rows(indices: NDArray[np.uint8], classes: list[dict[str, Any]], image: Image) -> list[dict[str, Any]]:
    """Pixels, share and (where the spacing of a volume is known) millilitres of each class."""
    counts = np.bincount(indices.reshape(-1), minlength=len(classes))
    volume = math.prod(image.spacing) / 1000 if image.spacing and image.dimensions == 3 else None
    return [
        {
            **item,
            "pixels": int(count),
            "fraction": float(count / indices.size),
            # In digits, not decimals: the parts of a micro-CT are some nanolitres large.
            "volume_ml": float(f"{float(count) * volume:.6g}") if volume else None,
        }
        for item, count in zip(classes, counts, strict=True)
    ]


def _score(
    row: InferenceResult, image: Image, found: Segmentation, predictor: Predictor
) -> tuple[ImageMetrics, list[str]]:
    """The scores of this image against its reference mask, and how that was read. Raises ImageError if it does not fit."""
    with naming(row.reference_name):
        mask = read_mask(storage.fetch(row.reference_key), like=image)
        check_pair(image, mask)
    dataset = predictor.plan.fingerprint
    try:
        # As the masks of the training were read (colours, 0/1 beside 0/255, numbers of objects), or as a result is.
        class_values = predictor.plan.class_values
        values = reference_values(mask, dataset.mask_codes, [*class_values, *dataset.ignored])
        reference = label_indices(values, class_values, row.reference_name, dataset.ignored)
    except TrainingError as error:
        raise MLError(error.code, error.reason, LABEL_VALUES) from None
    rows = case_metrics(reference, found.indices, len(predictor.plan.class_values), image.spacing)
    summary = summarise([rows])
    classes = zip(predictor.plan.class_values, predictor.plan.class_names, predictor.plan.class_colors, strict=True)
    remarks = [f"{row.reference_name}: {notice.text}" for notice in mask.notices]
    metrics = ImageMetrics(
        dice=summary.dice,
        iou=summary.iou,
        precision=summary.precision,
        recall=summary.recall,
        hd95=summary.hd95,
        nsd=summary.nsd,
        per_class=[
            NamedScores(**vars(scores), value=value, name=name, color=color)
            for (value, name, color), scores in zip(classes, rows, strict=True)
        ],
        unit="mm" if image.spacing else "px",
    )
    return metrics, remarks
