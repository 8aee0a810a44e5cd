"""What a machine keeps beside the platform's storage, and how it goes away again when its rows are gone.

A dataset or model is deleted by the web process, which may be another machine. So each one looks for itself.
"""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from pathlib import Path

from django.db import connection

from datasets.models import Dataset
from medseg_site.shared.catalogue import manifests
from medseg_site.shared.storage import cache, scratch
from medseg_site.shared.storage import objects as storage
from models_app.models import SegmentationModel

log = logging.getLogger(__name__)

SECONDS_BETWEEN_SWEEPS = 3600


def sweep() -> None:
    """Remove what killed processes left, decoded samples of deleted datasets, and trainings that are over or deleted."""
    scratch.sweep_scratch()
    for folder, owner in _folders(cache.decoded_folder(uuid.uuid4()).parent):
        if not Dataset.objects.filter(uuid=owner).exists():
            shutil.rmtree(folder, ignore_errors=True)
    for folder, owner in _folders(scratch.training_folder(uuid.uuid4()).parent):
        rows = SegmentationModel.objects.filter(uuid=owner)
        if rows.filter(status="completed").exists() or not (rows.exists() or _is_in_storage(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_in_storage(owner: uuid.UUID) -> bool:
    """A model that is in no row but has its manifest waits for `rebuild_catalog`: its checkpoints may lie nowhere else."""
    return storage.size_of(storage.object_key("models", owner, manifests.NAME)) is not None


def _folders(parent: Path) -> list[tuple[Path, uuid.UUID]]:
    """Folders named like a row."""
    found = []
    for path in parent.iterdir() if parent.is_dir() else ():
        try:
            found.append((path, uuid.UUID(path.name)))
        except ValueError:
            continue
    return found


def sweep_now_and_then() -> None:
    """For a thread of its own."""
    while True:
        try:
            sweep()
        except Exception:
            log.exception("the local disk was not swept; next time in an hour")
        finally:
            connection.close()
        time.sleep(SECONDS_BETWEEN_SWEEPS)
