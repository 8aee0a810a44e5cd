"""A ZIP of images becomes one inference per image; the batch ends with the last of them."""

from __future__ import annotations

import logging
import uuid
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone

from datasets.archives import ArchiveError, ArchiveLimits, SafeArchive
from inference.models import InferenceBatch, InferenceResult
from medseg_site.shared.base import outages
from medseg_site.shared.base.text import clean_file_name, count_of
from medseg_site.shared.catalogue import manifests
from medseg_site.shared.jobs.claim import CancelledError, Claim, ClaimLostError, announce, claim
from medseg_site.shared.jobs.log import MOST_EVENTS, add_to_timeline, timeline_entry
from medseg_site.shared.jobs.reaper import LOST_MESSAGE_SECONDS, is_message_due, waits_since
from medseg_site.shared.storage import objects as storage
from ml_core.io import SUPPORTED_SUFFIXES
from uploads.verification import UploadDamagedError, check_upload

log = logging.getLogger(__name__)

MOST_IMAGES = 10_000
ACTIVE = ["queued", "running"]
MOST_MESSAGES = 128  # on their way at once for all batches together: as many workers can be at them
UNTOLD = {"stage": "cancelling"}  # the progress of a cancelled image whose timeline and manifest do not say so yet
TOLD_AT_ONCE = 100  # images; then the batch says that somebody is at it


def expand(pk: int) -> bool:
    """Make the inferences of one batch, whatever happens. True when they now wait to be run."""
    job = claim(InferenceBatch, pk)
    if job is None:
        return False
    stored: list[str] = []
    try:
        with storage.scratch_folder(f"batch-{pk}") as folder:
            _expand(job, folder, stored)
        close_batch_if_done(pk)  # workers may have been quick, or none had anything to do
        return True
    except ClaimLostError:
        if not InferenceBatch.objects.filter(
            pk=pk
        ).exists():  # else they are the other attempt's: its names are the same
            _delete(stored)
    except CancelledError:
        _delete(stored)
        job.cancel()
    except (ArchiveError, UploadDamagedError) as error:
        _fail(job, str(error), stored)
    except Exception as error:
        if reason := outages.reason_of(error):
            job.retry_later(reason)  # the reaper sends for a worker when it is time
            return False
        log.exception("batch %s", pk)
        text = (
            f"The batch could not be unpacked ({type(error).__name__}). Send it again; if it fails again, see its log."
        )
        _fail(job, text, stored)
    return False


def _fail(job: Claim[InferenceBatch], reason: str, stored: list[str]) -> None:
    """Its images go before the row says so: where storage fails at that, the batch stays at work, and the reaper sends for another."""
    batch = InferenceBatch.objects.filter(pk=job.row.pk)
    if batch.filter(claim_token=job.token).exists():
        with job.kept_alive():
            _delete(stored)
        job.fail(reason, archive_key="")
        if job.row.archive_key:
            storage.delete_object(job.row.archive_key)
    elif not batch.exists():  # else another worker has it by now, and needs what lies there
        _delete(stored)


def _delete(prefixes: list[str]) -> None:
    for prefix in prefixes:
        storage.delete_prefix(prefix)


def _expand(job: Claim[InferenceBatch], folder: Path, stored: list[str]) -> None:
    batch = job.row
    archive_key = batch.archive_key  # none where the images are there already, and one of them was tried again
    known = set(batch.inferences.values_list("uuid", flat=True))  # also those that were found in storage again
    rows: list[InferenceResult] = []
    issues: list[dict[str, str]] = list(batch.issues)
    if archive_key:
        with job.kept_alive():  # one large image over a slow line takes longer than a heartbeat may be silent
            rows, issues = _unpack(job, folder, known, stored)
    if not rows and not known:
        raise ArchiveError(
            "no_images",
            "The ZIP holds no image that can be read.",
            "Zip PNG, JPG, TIFF, BMP, DICOM or NIfTI files.",
        )
    with transaction.atomic():
        InferenceResult.objects.bulk_create(rows, batch_size=500)
        # The batch goes on without a worker of its own: its inferences are jobs themselves.
        job.log.add(f"{count_of(len(rows), 'image')}, left out: {count_of(len(issues), 'file')}")
        job.log.detach()
        ended: dict[str, Any] = {"issues": issues[:1000], "progress": {}, "archive_key": "", "log": job.log.text()}
        job.update(claim_token=None, heartbeat_at=None, **ended)
    stored.clear()  # they belong to rows now, whatever fails from here on
    # The archive goes last: until every inference has its manifest, storage alone could still unpack it again.
    manifests.store_many(rows)
    _mend_manifests(batch.pk, rows)
    manifests.keep_up(batch)
    if archive_key:
        storage.delete_object(archive_key)


def _unpack(
    job: Claim[InferenceBatch], folder: Path, known: set[uuid.UUID], stored: list[str]
) -> tuple[list[InferenceResult], list[dict[str, str]]]:
    """The images that are not `known` yet, stored and as rows to be written, and what is no image. `stored` gets their prefixes."""
    batch = job.row
    rows, issues = [], []
    archive_path = storage.fetch(batch.archive_key)
    check_upload(batch.uuid, archive_path)
    with SafeArchive(archive_path, ArchiveLimits(max_expanded_bytes=settings.MEDSEG_MAX_EXPANDED_BYTES)) as archive:
        names = sorted(archive.sizes)
        if len(names) > MOST_IMAGES:
            raise ArchiveError("too_many", f"The ZIP holds {len(names)} files; {MOST_IMAGES} is the most.", "Split it.")
        for position, name in enumerate(names):
            share = position / len(names)
            job.beat({"stage": "unpacking", "done": position, "total": len(names), "fraction": share})
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
    return rows, issues


def _mend_manifests(pk: int, rows: list[InferenceResult]) -> None:
    """Workers may have taken images while their first manifests were written, and the batch may have been deleted meanwhile."""
    living = dict(InferenceResult.objects.filter(batch=pk).values_list("pk", "status"))
    for row in rows:
        status = living.get(row.pk)
        if status is None:
            storage.delete_prefix(storage.object_key("inferences", row.uuid))
        elif status not in ACTIVE:  # what is at work gets its last manifest at its end
            manifests.rewrite(InferenceResult.objects.get(pk=row.pk))


def waiting_images() -> QuerySet[InferenceResult]:
    """Images that no worker has, and that do not wait for the end of an outage."""
    return InferenceResult.objects.filter(status="queued", claim_token=None, enqueued_at__lte=timezone.now())


def batches_with_work() -> QuerySet[InferenceBatch]:
    """Batches that are unpacked and have an image which no worker has."""
    unpacked = InferenceBatch.objects.filter(status="running", claim_token=None, cancel_requested=False)
    return unpacked.filter(Exists(waiting_images().filter(batch=OuterRef("pk"))))


def call_workers(pk: int) -> tuple[str, int]:
    """(the stamp of the messages to send for a batch, how many). Those sent before die out: their stamp is an old one.

    A message calls a worker to one turn (inference/turns.py), after which it is sent again while images wait. So there
    are never more of them than workers can use, however many images there are.
    """
    share = max(1, MOST_MESSAGES // max(1, batches_with_work().count()))
    count = min(share, waiting_images().filter(batch=pk).count())
    now = timezone.now()
    InferenceBatch.objects.filter(pk=pk).update(enqueued_at=now)
    return now.isoformat(), count


def forgotten_batches() -> list[int]:
    """Batches with work whose workers were called so long ago that the messages may be lost."""
    silent = timezone.now() - timedelta(seconds=LOST_MESSAGE_SECONDS)
    called = batches_with_work().filter(enqueued_at__lt=silent).order_by("pk")
    found = []
    for pk, sent, served, timeline in called.values_list("pk", "enqueued_at", "served_at", "timeline"):
        since = max((at for at in (served, waits_since(timeline)) if at), default=None)
        if is_message_due(sent, since):
            found.append(pk)
    return found


def cancel_images(pk: int) -> int:
    """Cancel the images of a batch that wait, and ask the workers to stop at those that they have. How many waited.

    Up to 10,000 end in one UPDATE, so that the user is answered at once; `note_cancelled_images` has to follow.
    """
    images = InferenceResult.objects.filter(batch=pk)
    # In this order: one that a worker takes in between is still caught.
    waiting = images.filter(status="queued", claim_token=None)
    count = waiting.update(status="cancelled", cancel_requested=True, finished_at=timezone.now(), progress=UNTOLD)
    images.filter(status="running").update(cancel_requested=True)
    return count


def untold_images() -> QuerySet[InferenceResult]:
    return InferenceResult.objects.filter(status="cancelled", progress=UNTOLD)


def note_cancelled_images(pk: int) -> None:
    """The manifests and timelines of the images that `cancel_images` ended all at once; then the batch can end.

    A second call goes on where the first one stopped: an image is told once its manifest is there.
    """
    for number, image in enumerate(untold_images().filter(batch=pk).iterator(chunk_size=500)):
        if number % TOLD_AT_ONCE == 0:
            InferenceBatch.objects.filter(pk=pk).update(enqueued_at=timezone.now())
        entry = timeline_entry("cancelled", detail="The batch was cancelled.")
        image.progress, image.timeline = {}, [*image.timeline, entry][-MOST_EVENTS:]
        manifests.store(image)
        if not untold_images().filter(pk=image.pk).update(progress={}, timeline=image.timeline):
            manifests.refresh(InferenceResult, image.uuid, anew=True)  # deleted, or tried again meanwhile
    close_batch_if_done(pk)


def close_batch_if_done(pk: int) -> None:
    """End a batch whose last inference has ended: cancelled where that was asked for, completed if any image could be
    segmented, else failed. A cancelled one stays open until its images are told: only open ones does the reaper look after."""
    results, untold = InferenceResult.objects.filter(batch=pk), untold_images().filter(batch=OuterRef("pk"))
    if results.filter(status__in=ACTIVE).exists():
        return  # a look, before a write that all but one of its images would ask for in vain
    active = InferenceResult.objects.filter(batch=OuterRef("pk"), status__in=ACTIVE)
    done = InferenceBatch.objects.filter(~Exists(active), ~Exists(untold), pk=pk, status="running", claim_token=None)
    ended: dict[str, Any] = {"finished_at": timezone.now()}
    if done.filter(cancel_requested=True).exists():
        status = "cancelled"
    elif results.filter(status="completed").exists():
        status = "completed"
    else:
        status = "failed"
        first = results.filter(status="failed").values_list("error", flat=True).first()
        ended["error"] = f"No image of the batch could be segmented. The first reason: {first or 'they were cancelled'}"
    with transaction.atomic():
        if done.update(status=status, **ended):
            add_to_timeline(InferenceBatch.objects.filter(pk=pk), status, detail=ended.get("error") or "")
            announce(InferenceBatch.objects.get(pk=pk), status)


def close_finished_batches() -> list[int]:
    """The same for every batch: for those whose worker died between the last inference and the batch's end, and
    those that were cancelled while they were unpacked. The numbers of those are returned whose images are to be told."""
    unpacked = InferenceBatch.objects.filter(status="running", claim_token=None)
    silent = timezone.now() - timedelta(seconds=LOST_MESSAGE_SECONDS)
    to_be_told = []
    for pk, is_cancelled, sent in unpacked.values_list("pk", "cancel_requested", "enqueued_at"):
        newly_cancelled = is_cancelled and cancel_images(pk)
        if newly_cancelled or (is_cancelled and sent < silent and untold_images().filter(batch=pk).exists()):
            InferenceBatch.objects.filter(pk=pk).update(enqueued_at=timezone.now())
            to_be_told.append(pk)
        close_batch_if_done(pk)
    return to_be_told
