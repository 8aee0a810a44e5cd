"""The best weights of a training that was cancelled when nobody was at work on it: between two attempts, or after its worker's death."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from medseg_site.shared.base import outages
from medseg_site.shared.jobs.claim import announce
from medseg_site.shared.jobs.log import add_to_timeline
from medseg_site.shared.storage import cache
from medseg_site.shared.storage import objects as storage
from models_app.models import NO_WEIGHTS, WEIGHTS_KEPT, SegmentationModel
from models_app.training import bring_checkpoints, job_document, store_package, write_job

log = logging.getLogger(__name__)


def keep_weights(pk: int) -> None:
    """Package what the checkpoints hold. It is dropped where the training goes on meanwhile, or was deleted.

    What an outage kept from being done is raised, for the reaper asks again; what cannot be packed at all is given up.
    """
    model = _cancelled().filter(pk=pk).first()
    if model is None or model.dataset is None:
        return
    with storage.scratch_folder(f"weights-{pk}") as folder:
        try:
            package = _package(model, folder)
        except Exception as error:
            if outages.reason_of(error):
                raise
            log.exception("model %s: its weights could not be kept", pk)
            package = None
        stored = store_package(model, package) if package else None
    columns: dict[str, Any] = {}
    if stored:
        columns = {"s3_bucket": storage.bucket_name(), "s3_key": stored.key, "checksum": stored.sha256}
        columns["trained_at"] = timezone.now()
    mine = _cancelled().filter(pk=pk)
    with transaction.atomic():
        written = mine.update(**columns, heartbeat_at=timezone.now())
        if written:
            add_to_timeline(
                SegmentationModel.objects.filter(pk=pk), WEIGHTS_KEPT if stored else NO_WEIGHTS, attempt=model.attempt
            )
            announce(SegmentationModel.objects.get(pk=pk), model.status)
    if stored and not written and not SegmentationModel.objects.filter(s3_key=stored.key).exists():
        storage.delete_object(stored.key)


def _cancelled() -> QuerySet[SegmentationModel]:
    return SegmentationModel.objects.filter(status=SegmentationModel.WORDS.cancelled, s3_key="")


def _package(model: SegmentationModel, folder: Path) -> Path | None:
    """model.zip of the best weights, or None where there are none. Of links: the training's own folder stays as it is."""
    from ml_core.prediction.package import LEARNT_FROM
    from ml_core.training.run import (
        TrainingJob,  # PyTorch: not where one only looks for what is to be done
        run,
    )

    there = storage.training_folder(model.uuid)
    if storage.is_remote():
        bring_checkpoints(model, folder)
    else:
        for path in sorted([*there.rglob("best.safetensors"), *there.glob(LEARNT_FROM)]):
            cache.link(path, folder / path.relative_to(there))
    if not any(folder.rglob("best.safetensors")):
        return None
    assert model.dataset
    document = job_document(model, model.dataset, folder, folder / "store") | {"split": model.split, "salvage": True}
    run(TrainingJob.read(write_job(folder, document)), on_event=lambda event: None, should_stop=lambda: False)
    return folder / "model.zip"
