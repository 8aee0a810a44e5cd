"""The best weights of a training that was cancelled when nobody was at work on it: between two attempts, or after its worker's death."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
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
from models_app.models import SegmentationModel
from models_app.training import bring_checkpoints, job_document, store_package, write_job

log = logging.getLogger(__name__)

KEPT, NONE = "weights kept", "no weights"
LOOKED_BACK = timedelta(days=1)


def without_weights(**only: Any) -> Iterator[int]:
    """Models that were cancelled after an epoch, and whose weights nobody has looked for yet. `only`: as for a filter."""
    lately = _cancelled().filter(finished_at__gt=timezone.now() - LOOKED_BACK, dataset__isnull=False, **only)
    for pk, timeline in lately.filter(epochs__isnull=False).distinct().values_list("pk", "timeline"):
        if timeline and timeline[-1]["event"] not in (KEPT, NONE):
            yield pk


def is_due(model: SegmentationModel) -> bool:
    """Whether this is one of them."""
    cancelled = model.status == SegmentationModel.WORDS.cancelled and not model.s3_key  # most are not: no query
    return cancelled and any(without_weights(pk=model.pk))


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
            add_to_timeline(SegmentationModel.objects.filter(pk=pk), KEPT if stored else NONE, attempt=model.attempt)
            announce(SegmentationModel.objects.get(pk=pk), model.status)
    if stored and not written and not SegmentationModel.objects.filter(s3_key=stored.key).exists():
        storage.delete_object(stored.key)


def _cancelled() -> QuerySet[SegmentationModel]:
    return SegmentationModel.objects.filter(status=SegmentationModel.WORDS.cancelled, s3_key="")


def _package(model: SegmentationModel, folder: Path) -> Path | None:
    """model.zip of the best weights, or None where there are none. Of links: the training's own folder stays as it is."""
    from ml_core.prediction.package import LEARNT_FROM
    from ml_core.training.job import TrainingJob
    from ml_core.training.run import run  # PyTorch: not where one only looks for what is to be done

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
