"""A ZIP of images becomes one inference per image; the batch ends with the last of them."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone

from inference.models import InferenceBatch, InferenceResult
from medseg_site.shared.base.text import clean_path, count_of
from medseg_site.shared.catalogue import manifests
from medseg_site.shared.jobs.claim import Claim
from medseg_site.shared.jobs.endings import cancel_all_waiting, end_unclaimed
from medseg_site.shared.jobs.log import MAX_EVENTS, timeline_entry
from medseg_site.shared.jobs.reaper import LOST_MESSAGE_SECONDS, is_message_lost
from medseg_site.shared.jobs.run import Work, run
from medseg_site.shared.storage import objects as storage
from medseg_site.shared.storage import scratch
from ml_core.dataset import findings
from ml_core.dataset.findings import Issue
from ml_core.dataset.images import ImageEntries, find_images
from ml_core.io import formats, series
from ml_core.io.containers import SPLIT, ArchiveError, ArchiveLimits, SafeArchive
from ml_core.io.content import HEAD_BYTES, suffix_by_content
from ml_core.io.parts import is_mostly_dicom
from uploads.verification import UploadDamagedError, check_upload

MAX_IMAGES = 10_000
MAX_INNER_FILES = 100_000  # in all ZIPs that lie in the ZIP
ACTIVE = ["queued", "running"]
# On their way at once for all batches together: as many workers can be at them.
MAX_MESSAGES = 128
NOTED_AT_ONCE = 100  # images; then the batch says that a worker is at it


def expand(pk: int) -> bool:
    """Make the inferences of one batch. True when they now wait to be run; else the batch has ended or is queued again."""
    work = _Expansion()
    run(work, pk)
    return work.is_expanded


class _Expansion(Work[InferenceBatch]):
    model = InferenceBatch
    TOO_LONG = "The batch took longer to unpack than its time limit. Split it into smaller ones."
    UNEXPECTED = "The batch could not be unpacked ({error}). Send it again; if it fails again, see its log."

    def __init__(self) -> None:
        self.is_expanded = False
        self.stored: list[str] = []  # prefixes of images that no row names yet

    def do(self, job: Claim[InferenceBatch]) -> None:
        with scratch.scratch_folder(f"batch-{job.row.pk}") as folder:
            _expand(job, folder, self.stored)
        self.is_expanded = True
        # Workers may have been quick, or none had anything to do.
        close_batch_if_done(job.row.pk)

    def refusal_of(self, row: InferenceBatch, error: Exception) -> str | None:
        return str(error) if isinstance(error, (ArchiveError, UploadDamagedError)) else None

    def refuse(self, job: Claim[InferenceBatch], error: Exception, reason: str) -> None:
        """The images go before the row says so: where storage fails at that, the batch stays at work, and another worker gets it."""
        is_ours = _held(job).exists()
        self.discard(job)
        if is_ours:
            job.fail(reason, archive_key="")
            if job.row.archive_key:
                storage.delete_object(job.row.archive_key)

    def discard(self, job: Claim[InferenceBatch]) -> None:
        """Not where another worker has the batch by now: it stores the same images under the same names."""
        if _held(job).exists():
            with job.kept_alive():
                _delete(self.stored)
        else:
            self.forget(job.row)

    def forget(self, row: InferenceBatch) -> None:
        if not InferenceBatch.objects.filter(pk=row.pk).exists():
            _delete(self.stored)


def _held(job: Claim[InferenceBatch]) -> QuerySet[InferenceBatch]:
    return InferenceBatch.objects.filter(pk=job.row.pk, claim_token=job.token)


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
        first = next((f"The first problem: {issue['file']}: {issue['detail']}" for issue in issues), "")
        cure = first or f"Zip {formats.NAMES} files."
        raise ArchiveError("no_images", "The ZIP holds no image that can be read.", cure)
    with transaction.atomic():
        InferenceResult.objects.bulk_create(rows, batch_size=500)
        # The batch goes on without a worker of its own: its inferences are jobs themselves.
        left_out = sum(issue["severity"] == "error" for issue in issues)
        job.log.add(f"{count_of(len(rows), 'image')}, left out: {count_of(left_out, 'file')}")
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
    """The images that are not `known` yet, stored and as rows to be written, and what is said of files and folders.

    `stored` gets the prefixes of the images.
    """
    batch = job.row
    rows: list[InferenceResult] = []
    archive_path = storage.fetch(batch.archive_key)
    check_upload(batch.uuid, archive_path)
    limits = ArchiveLimits(max_expanded_bytes=settings.MEDSEG_MAX_EXPANDED_BYTES, has_zips=True)
    with SafeArchive(archive_path, limits) as archive:
        images, issues = _images_of(archive, folder, _dimensions_of(batch))
        if len(images) > MAX_IMAGES:
            raise ArchiveError(
                "too_many", f"The ZIP holds {len(images)} images; {MAX_IMAGES} is the most.", "Split it."
            )
        for position, image in enumerate(images):
            share = position / len(images)
            job.beat({"stage": "unpacking", "done": position, "total": len(images), "fraction": share})
            # The same in a second attempt, which then leaves nothing behind.
            owner = uuid.uuid5(batch.uuid, image.entries[0])
            if owner in known:
                continue
            prefix = storage.object_key("inferences", owner)
            stored.append(prefix)
            found = _store_image(archive, image, prefix, folder)
            rows.append(
                InferenceResult(
                    uuid=owner,
                    created_by=batch.created_by,
                    project=batch.project,
                    model=batch.model,
                    batch=batch,
                    status=InferenceResult.WORDS.queued,
                    image_name=clean_path(image.name),
                    input_image_s3_key=found.key,
                    input_sha256=found.sha256,
                )
            )
    return rows, [{**vars(issue), "file": issue.file[:500]} for issue in issues]


def _dimensions_of(batch: InferenceBatch) -> int:
    """2 for a model that was trained on pictures, 3 for one of volumes."""
    model = batch.model
    known = model and (model.plan.get("dimensions") or (model.dataset and model.dataset.dimensions))
    return int(known or 2)


def _images_of(archive: SafeArchive, folder: Path, dimensions: int) -> tuple[list[ImageEntries], list[Issue]]:
    """The images of a batch. A ZIP in it is one image if it holds one DICOM series and no other image."""
    zips = [name for name in sorted(archive.sizes) if name.lower().endswith(".zip")]
    names = set(archive.sizes) - set(zips)
    images, issues = find_images(names, dimensions, archive.head, archive.open_binary)
    files = 0
    for name in zips:
        try:
            archive.extract(name, folder / "inner.zip")
            with SafeArchive(folder / "inner.zip", series.LIMITS) as inner:
                files += len(inner.sizes)
                is_bounded = files <= MAX_INNER_FILES
                held = find_images(inner.sizes, 3, inner.head, inner.open_binary)[0] if is_bounded else []
        except ArchiveError as error:
            issues.append(Issue("error", error.code, name, str(error)))
            continue
        if files > MAX_INNER_FILES:
            text = f"The ZIPs in the ZIP hold more than {MAX_INNER_FILES} files."
            raise ArchiveError("too_many_files", text, SPLIT)
        slices = [len(image.entries) for image in held if image.is_series]
        if len(slices) == 1 and (len(held) == 1 or is_mostly_dicom(slices[0], len(held) - 1)):
            images.append(ImageEntries(name, (name,), False))
        else:
            issues.append(findings.NESTED_ARCHIVE.issue(name, what=count_of(len(held), "image")))
    (folder / "inner.zip").unlink(missing_ok=True)
    return sorted(images, key=lambda image: image.name), issues


def _store_image(archive: SafeArchive, image: ImageEntries, prefix: str, folder: Path) -> storage.StoredObject:
    """Store one image of a batch: a file as it is, a DICOM series as a ZIP of its slices."""
    path = folder / "image"
    if image.is_series:
        series.pack(archive, image.entries, path)
        return storage.store_file(f"{prefix}/input.zip", path)
    [name] = image.entries
    archive.extract(name, path)
    with path.open("rb") as file:
        suffix = suffix_by_content(name, file.read(HEAD_BYTES)) or ".dcm"
    return storage.store_file(f"{prefix}/input{suffix}", path)


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
    return InferenceResult.objects.takeable()


def batches_with_work() -> QuerySet[InferenceBatch]:
    """Batches that are unpacked and have an image which no worker has."""
    unpacked = InferenceBatch.objects.filter(status="running", claim_token=None, cancel_requested=False)
    return unpacked.filter(Exists(waiting_images().filter(batch=OuterRef("pk"))))


def call_workers(pk: int) -> tuple[str, int]:
    """(the stamp of the messages to send for a batch, how many). Messages with an older stamp do nothing.

    A message calls a worker to one turn (inference/turns.py), after which it is sent again while images wait. So there
    are never more of them than workers can use, however many images there are.
    """
    share = max(1, MAX_MESSAGES // max(1, batches_with_work().count()))
    count = min(share, waiting_images().filter(batch=pk).count())
    return note_call(pk).isoformat(), count


def note_call(pk: int) -> datetime:
    """Write down that workers are called to a batch now: the reaper calls them again when nothing follows."""
    now = timezone.now()
    InferenceBatch.objects.filter(pk=pk).update(called_at=now)
    return now


def forgotten_batches() -> list[int]:
    """Batches with work whose workers were called so long ago that the messages may be lost."""
    found = []
    rows = batches_with_work().order_by("pk").values_list("pk", "due_at", "called_at", "served_at")
    for pk, due_at, called_at, served_at in rows:
        if is_message_lost(called_at or due_at, since=max(due_at, served_at or due_at)):
            found.append(pk)
    return found


def cancel_images(pk: int) -> int:
    """Cancel the images of a batch that wait, and ask the workers to stop at those that they have. How many waited.

    Up to 10,000 end in one UPDATE, so that the user is answered at once; `note_cancelled_images` has to follow.
    """
    images = InferenceResult.objects.filter(batch=pk)
    # In this order: one that a worker takes in between is still caught.
    count = cancel_all_waiting(images, note_due=True)
    images.filter(status="running").update(cancel_requested=True)
    return count


def unnoted_images() -> QuerySet[InferenceResult]:
    return InferenceResult.objects.filter(status="cancelled", note_due=True)


def note_cancelled_images(pk: int) -> None:
    """Write the manifests and timelines of the images that `cancel_images` ended all at once; then the batch can end.

    A second call goes on where the first one stopped: an image is noted once its manifest is there.
    """
    for number, image in enumerate(unnoted_images().filter(batch=pk).iterator(chunk_size=500)):
        if number % NOTED_AT_ONCE == 0:
            note_call(pk)
        entry = timeline_entry("cancelled", detail="The batch was cancelled.")
        image.note_due, image.progress, image.timeline = False, {}, [*image.timeline, entry][-MAX_EVENTS:]
        manifests.store(image)
        if not unnoted_images().filter(pk=image.pk).update(note_due=False, progress={}, timeline=image.timeline):
            # Deleted, or tried again meanwhile.
            manifests.refresh(InferenceResult, image.uuid, anew=True)
    close_batch_if_done(pk)


def close_batch_if_done(pk: int) -> None:
    """End a batch whose last inference has ended.

    It ends as cancelled where that was asked for, as completed if any image could be segmented, else as failed. A cancelled
    batch stays open until its images are noted, since the reaper looks after open ones only.
    """
    images = InferenceResult.objects.filter(batch=pk)
    # A look first: all but one of its images would ask for the write below in vain.
    if images.filter(status__in=ACTIVE).exists():
        return
    batch = InferenceBatch.objects.filter(pk=pk).first()
    if batch is None:
        return
    active = InferenceResult.objects.filter(batch=OuterRef("pk"), status__in=ACTIVE)
    unnoted = unnoted_images().filter(batch=OuterRef("pk"))
    done = InferenceBatch.objects.filter(~Exists(active), ~Exists(unnoted), status="running")
    if done.filter(pk=pk, cancel_requested=True).exists():
        end_unclaimed(done, batch, "cancelled")
    elif images.filter(status="completed").exists():
        end_unclaimed(done, batch, "completed")
    else:
        first = images.filter(status="failed").values_list("error", flat=True).first()
        reason = f"No image of the batch could be segmented. The first reason: {first or 'they were cancelled'}"
        end_unclaimed(done, batch, "failed", error=reason)


def close_finished_batches() -> list[int]:
    """Do the same for every batch. Returns the numbers of those whose cancelled images are to be noted.

    It finds batches whose worker died between the last inference and the batch's end, and those that were cancelled while
    they were unpacked.
    """
    unpacked = InferenceBatch.objects.filter(status="running", claim_token=None)
    silent = timezone.now() - timedelta(seconds=LOST_MESSAGE_SECONDS)
    to_be_noted = []
    for pk, is_cancelled, called_at in unpacked.values_list("pk", "cancel_requested", "called_at"):
        newly_cancelled = is_cancelled and cancel_images(pk)
        is_silent = called_at is None or called_at < silent
        if newly_cancelled or (is_cancelled and is_silent and unnoted_images().filter(batch=pk).exists()):
            note_call(pk)
            to_be_noted.append(pk)
        close_batch_if_done(pk)
    return to_be_noted
