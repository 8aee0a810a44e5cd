"""What a machine keeps beside the objects: temporary files, checkpoints of trainings, decoded samples."""

from __future__ import annotations

import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings

from medseg_site.shared.storage import cache


def training_folder(owner: uuid.UUID) -> Path:
    """The folder of a training's checkpoints on this machine, until the training has completed."""
    return Path(settings.DATA_DIR) / "trainings" / str(owner)


def forget_local(owner: uuid.UUID) -> None:
    """Remove a dataset's decoded samples, or a model's checkpoints, from this machine."""
    shutil.rmtree(training_folder(owner), ignore_errors=True)
    cache.forget_decoded(owner)


def sweep_scratch(older_than_seconds: float = 24 * 3600) -> None:
    """Remove temporary files that a killed process left. No job and no upload leaves a file untouched for a day."""
    for path in Path(settings.TMP_DIR).iterdir():
        if time.time() - path.stat().st_mtime > older_than_seconds:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """A folder for one job's temporary files, on the data folder's disk, since /tmp may be in memory."""
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=settings.TMP_DIR) as folder:
        yield Path(folder)
