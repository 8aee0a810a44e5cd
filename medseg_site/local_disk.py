"""Removes files that this machine keeps outside storage for rows that no longer exist.

The web process that deletes a dataset or a model may run on another machine, so every machine looks for itself.
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
    """Remove files of killed processes, decoded samples of deleted datasets, and folders of ended trainings.

    The folder of a deleted training goes as well.
    """
    scratch.sweep_scratch()
    for folder, owner in _folders(cache.decoded_folder(uuid.uuid4()).parent):
        if not Dataset.objects.filter(uuid=owner).exists():
            shutil.rmtree(folder, ignore_errors=True)
    for folder, owner in _folders(scratch.training_folder(uuid.uuid4()).parent):
        rows = SegmentationModel.objects.filter(uuid=owner)
        if rows.filter(status="completed").exists() or not (rows.exists() or _is_in_storage(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_in_storage(owner: uuid.UUID) -> bool:
    """Whether the model has a manifest. `rebuild_catalog` may then restore its row, which needs these checkpoints."""
    return storage.size_of(storage.object_key("models", owner, manifests.NAME)) is not None


def _folders(parent: Path) -> list[tuple[Path, uuid.UUID]]:
    """The folders below `parent` whose name is a uuid, each with its uuid."""
    folders = []
    for path in parent.iterdir() if parent.is_dir() else ():
        try:
            folders.append((path, uuid.UUID(path.name)))
        except ValueError:
            continue
    return folders


def sweep_now_and_then() -> None:
    """Sweep once an hour, without end. It is meant for a thread of its own."""
    while True:
        try:
            sweep()
        except Exception:
            log.exception("the local disk was not swept; it is tried again in an hour")
        finally:
            connection.close()
        time.sleep(SECONDS_BETWEEN_SWEEPS)
