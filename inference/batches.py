"""A ZIP of images becomes one inference per image; the batch ends with the last of them."""

from __future__ import annotations

import logging
import uuid
from pathlib import PurePosixPath
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef
from django.utils import timezone

from datasets.archives import ArchiveError, ArchiveLimits, SafeArchive
from inference.models import InferenceBatch, InferenceResult
from medseg_site.shared import manifests, storage
from medseg_site.shared.jobs import CancelledError, Claim, ClaimLostError, announce, claim
from medseg_site.shared.text import clean_file_name
from ml_core.io import SUPPORTED_SUFFIXES

log = logging.getLogger(__name__)

MOST_IMAGES = 10_000
ACTIVE = ["queued", "running"]


def expand(pk: int) -> list[int]:
    """Make the inferences of one batch, whatever happens. The ids of those that now wait to be run."""
    job = claim(InferenceBatch, pk)
    if job is None:
        return []
    stored: list[str] = []
    try:
        with storage.scratch_folder(f"batch-{pk}") as folder:
            return _expand(job, folder, stored)
    except ClaimLostError:
        _delete(stored)
    except CancelledError:
        _delete(stored)
        job.cancel()
    except ArchiveError as error:
        _delete(stored)
        job.fail(str(error), archive_key="")
        storage.delete_object(job.row.archive_key)
    except Exception as error:
        log.exception("batch %s", pk)
        _delete(stored)
        job.fail(
            f"The batch could not be unpacked ({type(error).__name__}). Send it again; if it fails again, see the worker's log.",
            archive_key="",
        )
        storage.delete_object(job.row.archive_key)
    return []


def _delete(prefixes: list[str]) -> None:
    for prefix in prefixes:
        storage.delete_prefix(prefix)


def _expand(job: Claim[InferenceBatch], folder: Any, stored: list[str]) -> list[int]:
    batch = job.row
    archive_key = batch.archive_key
    archive_path = storage.fetch(archive_key)
    rows, issues = [], []
    known = set(batch.inferences.values_list("uuid", flat=True))  # those that were found in storage again
    with SafeArchive(archive_path, ArchiveLimits(max_expanded_bytes=settings.MEDSEG_MAX_EXPANDED_BYTES)) as archive:
        names = sorted(archive.sizes)
        if len(names) > MOST_IMAGES:
            raise ArchiveError("too_many", f"The ZIP holds {len(names)} files; {MOST_IMAGES} is the most.", "Split it.")
        for position, name in enumerate(names):
            job.beat(
                {
                    "stage": "unpacking",
                    "done": position,
                    "total": len(names),
                    "fraction": position / len(names),
                }
            )
            lower = name.lower()
            suffix = ".nii.gz" if lower.endswith(".nii.gz") else PurePosixPath(lower).suffix
            if suffix not in SUPPORTED_SUFFIXES:
                text = "It is no image that can be read. Use PNG, JPG, TIFF, BMP, DICOM or NIfTI."
                issues.append({"severity": "warning", "code": "unsupported_type", "file": name[:500], "detail": text})
                continue
            owner = uuid.uuid5(batch.uuid, name)  # the same in a second attempt, which then leaves nothing behind
            if owner in known:
                continue
            prefix = storage.object_key("inferences", owner)
            stored.append(prefix)
            archive.extract(name, folder / "image")
            found = storage.store_file(f"{prefix}/input{suffix}", folder / "image")
            rows.append(
                InferenceResult(
                    uuid=owner,
                    created_by=batch.created_by,
                    model=batch.model,
                    batch=batch,
                    status=InferenceResult.WORDS.queued,
                    image_name=clean_file_name(name),
                    input_image_s3_key=found.key,
                    input_sha256=found.sha256,
                )
            )
    if not rows and not known:
        raise ArchiveError(
            "no_images",
            "The ZIP holds no image that can be read.",
            "Zip PNG, JPG, TIFF, BMP, DICOM or NIfTI files.",
        )
    with transaction.atomic():
        InferenceResult.objects.bulk_create(rows, batch_size=500)
        # The batch goes on without a worker of its own: its inferences are jobs themselves.
        job.update(issues=issues[:1000], claim_token=None, heartbeat_at=None, progress={}, archive_key="")
    stored.clear()  # they belong to rows now, whatever fails from here on
    # The archive goes last: until every inference has its manifest, storage alone could still unpack it again.
    manifests.store_many(rows)
    manifests.keep_up(batch)
    storage.delete_object(archive_key)
    return [row.pk for row in rows]


def close_batch_if_done(pk: int) -> None:
    """End a batch whose last inference has ended: completed if any image could be segmented, else failed."""
    active = InferenceResult.objects.filter(batch=OuterRef("pk"), status__in=ACTIVE)
    any_row = InferenceResult.objects.filter(batch=OuterRef("pk"))
    done = InferenceBatch.objects.filter(Exists(any_row), ~Exists(active), pk=pk, status="running", claim_token=None)
    results = InferenceResult.objects.filter(batch=pk)
    if results.filter(status="completed").exists():
        closed, status = done.update(status="completed", finished_at=timezone.now()), "completed"
    else:
        first = results.filter(status="failed").values_list("error", flat=True).first()
        reason = f"No image of the batch could be segmented. The first reason: {first or 'it was cancelled'}"
        closed, status = done.update(status="failed", finished_at=timezone.now(), error=reason), "failed"
    if closed:
        announce(InferenceBatch.objects.get(pk=pk), status)


def close_finished_batches() -> None:
    """The same for every batch: for those whose worker died between the last inference and the batch's end."""
    for pk in InferenceBatch.objects.filter(status="running", claim_token=None).values_list("pk", flat=True):
        close_batch_if_done(pk)
