"""The worker's side of an inference: bring image and model, predict, store the label map, write the numbers."""

from __future__ import annotations

import io
import logging
import math
import time
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from celery.exceptions import SoftTimeLimitExceeded
from django.conf import settings
from django.db import transaction
from numpy.typing import NDArray
from PIL import Image as PILImage

from inference.batches import close_batch_if_done
from inference.models import InferenceResult
from medseg_site.shared.base import outages
from medseg_site.shared.catalogue import manifests
from medseg_site.shared.jobs.claim import CancelledError, Claim, ClaimLostError, claim
from medseg_site.shared.storage import objects as storage
from ml_core.dataset.case import label_indices
from ml_core.dataset.checks import check_pair, naming
from ml_core.errors import ImageError, MLError, TrainingError
from ml_core.io import Image, read_image, read_mask, write_label_map
from ml_core.measures.metrics import case_metrics, summarise
from ml_core.prediction.package import to_json
from ml_core.prediction.predictor import Predictor, Segmentation
from models_app.models import SegmentationModel

log = logging.getLogger(__name__)

LABEL_VALUES = "Send a mask with the label values that the model's classes have."


class _WarmModels:
    """Loaded models, the last used ones, bounded by bytes. One process handles one inference at a time."""

    def __init__(self, max_bytes: int) -> None:
        self._loaded: OrderedDict[str, Predictor] = OrderedDict()
        self._bytes: dict[str, int] = {}
        self._max_bytes = max_bytes

    def get(self, model: SegmentationModel) -> Predictor:
        key = model.checksum  # the weights themselves, so a model that went on training is another one
        if key not in self._loaded:
            started = time.perf_counter()
            self._loaded[key] = Predictor.load(storage.fetch(model.s3_key, model.checksum))
            self._bytes[key] = self._loaded[key].nbytes
            log.info("loaded %s in %.2f s", model, time.perf_counter() - started)
        self._loaded.move_to_end(key)
        while sum(self._bytes.values()) > self._max_bytes and len(self._loaded) > 1:
            oldest, _ = self._loaded.popitem(last=False)
            del self._bytes[oldest]
        return self._loaded[key]


_warm = _WarmModels(settings.MEDSEG_MODEL_CACHE_BYTES)


def run(pk: int) -> float | None:
    """Run one inference, whatever happens: the row ends as completed, cancelled, or failed with the reason.

    Seconds until its message has to be sent again where an outage met it and it is queued again.
    """
    job = claim(InferenceResult, pk)
    if job is None:
        return None
    row = job.row
    try:
        with storage.scratch_folder(f"inference-{pk}") as folder:
            _run(job, folder)
    except ClaimLostError:
        if not InferenceResult.objects.filter(pk=pk).exists():
            storage.delete_prefix(storage.object_key("inferences", row.uuid))
    except CancelledError:
        job.cancel()
    except ImageError as error:
        job.fail(f"{error.file or row.image_name}: {error}")
    except MLError as error:
        job.fail(str(error))
    except FileNotFoundError:
        job.fail("The image or the model is not in storage any more. Send the image again, or train again.")
    except SoftTimeLimitExceeded:
        job.fail("The segmentation took longer than its time limit. Use a smaller image.")
    except Exception as error:
        if reason := outages.reason_of(error):
            return job.retry_later(reason)
        log.exception("inference %s", pk)
        job.fail(
            f"The segmentation ended unexpectedly ({type(error).__name__}). Try again; if it fails again, see the worker's log."
        )
    finally:
        if row.batch_id:
            close_batch_if_done(row.batch_id)
    return None


def _run(job: Claim[InferenceResult], folder: Path) -> None:
    row = job.row
    if row.model is None or not row.model.is_usable:
        raise MLError("no_model", "The model was deleted.", "Choose another model.")
    started = time.perf_counter()
    with job.kept_alive():
        image = read_image(storage.fetch(row.input_image_s3_key, row.input_sha256))
        job.beat()  # here and below: the moment to notice a cancel wish, where it took long enough for somebody to have one
        predictor = _warm.get(row.model)
        found = predictor.predict(image)
        job.beat()
        path = write_label_map(found.values, image, folder)
        metrics = _score(row, image, found, predictor) if row.reference_key else None
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
            "metrics": to_json(metrics),
            "warnings": found.warnings,
        }
        columns = manifests.store_done(row, columns | job.last_words(), is_fresh=True)  # a request waits
    with transaction.atomic():
        job.finish(**columns)


def _store_certainty(row: InferenceResult, image: Image, found: Segmentation, folder: Path) -> storage.StoredObject:
    """The map of certainty on the image's own grid, uint8 with 255 for sure: PNG, or NIfTI for volumes."""
    levels = np.rint(found.certainty.astype(np.float32) * 255).astype(np.uint8)
    key = partial(storage.object_key, "inferences", row.uuid)
    if image.dimensions == 2 and image.family != "nifti":
        png = io.BytesIO()  # a request waits for this: little compression, and no way over the disk
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
            "volume_ml": round(float(count) * volume, 4) if volume else None,
        }
        for item, count in zip(classes, counts, strict=True)
    ]


def _score(row: InferenceResult, image: Image, found: Segmentation, predictor: Predictor) -> dict[str, Any]:
    """The numbers of this one image against the reference mask that came with it. Raises ImageError if it does not fit."""
    with naming(row.reference_name):
        mask = read_mask(storage.fetch(row.reference_key), like=image)
        check_pair(image, mask)
        if mask.coding == "rgb":
            raise ImageError("mask_coding", "The reference mask is coded in colours.", LABEL_VALUES)
    try:
        reference = label_indices(mask.values, predictor.plan.class_values, row.reference_name)
    except TrainingError as error:
        raise MLError(error.code, error.reason, LABEL_VALUES) from None
    rows = case_metrics(reference, found.indices, len(predictor.plan.class_values), image.spacing)
    summary = summarise([rows])
    classes = zip(predictor.plan.class_values, predictor.plan.class_names, predictor.plan.class_colors, strict=True)
    per_class = [{"value": v, "name": n, "color": c, **entry} for (v, n, c), entry in zip(classes, rows, strict=True)]
    unit = "mm" if image.spacing else "px"
    return {
        **{name: summary[name] for name in ("dice", "iou", "precision", "recall", "hd95", "nsd")},
        "per_class": per_class,
        "unit": unit,
    }
