"""Packages the best weights of a cancelled training whose own process did not do so.

That is the case when no worker had the training as it was cancelled, or when its process hung and was killed. A worker
for inferences does it.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

from django.db import transaction
from django.utils import timezone

from medseg_site.shared.base import outages
from medseg_site.shared.jobs.endings import announce
from medseg_site.shared.jobs.log import add_to_timeline
from medseg_site.shared.storage import cache, scratch
from medseg_site.shared.storage import objects as storage
from models_app.models import SegmentationModel, cancelled_with_weights_due
from models_app.training import bring_checkpoints, job_document, store_package, write_job

log = logging.getLogger(__name__)


def keep_weights(pk: int) -> None:
    """Package the weights in the checkpoints. The package is dropped if the training was resumed or deleted meanwhile.

    An outage is raised, and the reaper asks again. Any other error gives the weights up, and the row then says so.
    """
    model = cancelled_with_weights_due().filter(pk=pk).first()
    if model is None:
        return
    with scratch.scratch_folder(f"weights-{pk}") as folder:
        try:
            package = _package(model, folder)
        except Exception as error:
            if outages.reason_of(error):
                raise
            log.exception("model %s: its weights could not be kept", pk)
            package = None
        stored = store_package(model, package) if package else None
    columns: dict[str, Any] = {"weights_due": False}
    if stored:
        columns |= {"s3_bucket": storage.bucket_name(), "s3_key": stored.key, "checksum": stored.sha256}
        columns["trained_at"] = timezone.now()
    with transaction.atomic():
        is_kept = cancelled_with_weights_due().filter(pk=pk).update(**columns)
        if is_kept:
            event = "weights kept" if stored else "no weights"
            add_to_timeline(SegmentationModel.objects.filter(pk=pk), event, attempt=model.attempt)
            announce(SegmentationModel.objects.get(pk=pk), model.status)
            if stored and model.s3_key not in ("", stored.key):
                # The package of an earlier end is removed once the manifest no longer names it.
                transaction.on_commit(partial(storage.delete_object, model.s3_key), robust=True)
    if stored and not is_kept and not SegmentationModel.objects.filter(s3_key=stored.key).exists():
        storage.delete_object(stored.key)


def _package(model: SegmentationModel, folder: Path) -> Path | None:
    """Return a model.zip of the best weights, or None when there are none.

    It is made from hard links, so that the folder of the training stays as it is.
    """
    from ml_core.prediction.package import LEARNT_FROM
    from ml_core.training.job import TrainingJob
    from ml_core.training.run import package_best

    training_folder = scratch.training_folder(model.uuid)
    if storage.is_remote():
        bring_checkpoints(model, folder)
    else:
        for path in sorted([*training_folder.rglob("best.safetensors"), *training_folder.glob(LEARNT_FROM)]):
            cache.link(path, folder / path.relative_to(training_folder))
    if not any(folder.rglob("best.safetensors")):
        return None
    assert model.dataset
    document = job_document(model, model.dataset, folder, folder / "store") | {"split": model.split}
    package_best(TrainingJob.read(write_job(folder, document)))
    return folder / "model.zip"
