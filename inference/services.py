"""Creates, cancels, retries and deletes inferences and batches for users."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any

from django.conf import settings
from django.core.files import File
from django.db import transaction

from accounts import audit
from accounts.access import require
from inference.batches import cancel_images, close_batch_if_done, note_call, note_cancelled_images
from inference.models import NOTE_CANCELLED, InferenceBatch, InferenceResult
from medseg_site.shared.base.errors import MedSegError, WrongStateError, refuse_if
from medseg_site.shared.base.text import clean_file_name, whole_number
from medseg_site.shared.catalogue import manifests, removal
from medseg_site.shared.catalogue.declarations import objects_of
from medseg_site.shared.jobs.messages import call_on_commit, send_on_commit
from medseg_site.shared.jobs.requests import request_cancel, requeue, why_not_requeueable
from medseg_site.shared.storage import objects as storage
from ml_core.io.content import HEAD_BYTES, suffix_by_content
from ml_core.io.formats import suffix_of
from models_app.models import SegmentationModel
from models_app.services import why_not_usable
from uploads.services import find_upload, mark_used, place_upload

# If a batch has more images, a worker removes their objects, so that the request need not wait.
MANY_IMAGES = 50


def create_inference(
    *, user: Any, model: SegmentationModel, image: File[Any], mask: File[Any] | None = None
) -> InferenceResult:
    """Store an image, and its reference mask if there is one, and queue its segmentation in the model's project.

    Raises MedSegError when a file cannot be used, and WrongStateError when the model cannot be used.
    """
    require(user, "change", model)
    _check_usable(model)
    owner = uuid.uuid4()
    prefix = storage.object_key("inferences", owner)
    try:
        stored = storage.store_upload(f"{prefix}/input{_checked_suffix(image, 'image')}", image)
        reference_key = ""
        if mask:
            reference_key = storage.store_upload(f"{prefix}/reference{_checked_suffix(mask, 'mask')}", mask).key
        with transaction.atomic():
            _lock_usable(model)
            row = InferenceResult.objects.create(
                uuid=owner,
                created_by=user,
                project_id=model.project_id,
                model=model,
                status=InferenceResult.WORDS.queued,
                image_name=clean_file_name(image.name),
                input_image_s3_key=stored.key,
                input_sha256=stored.sha256,
                reference_key=reference_key,
                reference_name=clean_file_name(mask.name) if mask else "",
            )
            manifests.keep_new(row)
            audit.record(user, "segment", row)
            send_on_commit(row)
        return row
    except Exception:
        storage.delete_prefix(prefix)
        raise


def create_batch(*, user: Any, model: SegmentationModel, archive: File[Any]) -> InferenceBatch:
    """Store a ZIP of images in the model's project. A worker then makes an inference for each image.

    Raises MedSegError when the file is not a ZIP, and WrongStateError when the model cannot be used.
    """
    require(user, "change", model)
    _check_usable(model)
    if not archive.size or not storage.is_zip(archive):
        text = f"{clean_file_name(archive.name)} is not a ZIP file, or it is damaged. Zip the images and upload that."
        raise MedSegError("not_a_zip", text, attr="archive")
    owner = uuid.uuid4()
    stored = storage.store_upload(storage.object_key("batches", owner, "archive.zip"), archive)
    try:
        with transaction.atomic():
            _lock_usable(model)
            batch = InferenceBatch.objects.create(
                uuid=owner,
                created_by=user,
                project_id=model.project_id,
                model=model,
                status=InferenceBatch.WORDS.queued,
                archive_name=clean_file_name(archive.name),
                archive_key=stored.key,
            )
            manifests.keep_new(batch)
            audit.record(user, "segment", batch)
            send_on_commit(batch)
        return batch
    except Exception:
        storage.delete_prefix(storage.object_key("batches", owner))
        raise


def create_batch_from_parts(*, user: Any, model: SegmentationModel, upload: uuid.UUID) -> InferenceBatch:
    """Create a batch from a ZIP that was uploaded in parts. A second call returns the same batch."""
    require(user, "change", model)
    found = find_upload(user=user, upload=upload, purpose="batch")
    made: InferenceBatch | None = InferenceBatch.objects.visible_to(user).filter(uuid=found.uuid).first()
    if made:
        # The request is repeated if the answer to the first one was lost.
        return made
    _check_usable(model)
    place_upload(found)
    with transaction.atomic():
        _lock_usable(model)
        mark_used(found)
        batch = InferenceBatch.objects.create(
            uuid=found.uuid,
            created_by=user,
            project_id=model.project_id,
            model=model,
            status=InferenceBatch.WORDS.queued,
            archive_name=found.file_name,
            archive_key=found.key,
        )
        manifests.keep_new(batch)
        audit.record(user, "segment", batch)
        send_on_commit(batch)
    return batch


def _check_usable(model: SegmentationModel) -> None:
    if reason := why_not_usable(model):
        raise WrongStateError(reason)


def _lock_usable(model: SegmentationModel) -> None:
    """Lock the model's row until the transaction ends. Raises WrongStateError if the model was deleted meanwhile.

    `_check_usable` ran before the files were stored, which can take long.
    """
    if not SegmentationModel.objects.select_for_update().filter(pk=model.pk).exclude(s3_key="").exists():
        raise WrongStateError("The model was deleted meanwhile. Choose another one.")


def _checked_suffix(upload: File[Any], field: str) -> str:
    """Return the ending to store a file under: that of its name if it is known, else that of its content, else ".dcm".

    An object's key thus never contains text that a user chose. Raises MedSegError if the file is empty, too large or of
    an unsupported kind.
    """
    name = clean_file_name(upload.name)
    if not upload.size:
        raise MedSegError("empty", f"{name} is empty. Choose another file.", attr=field)
    if upload.size > settings.MEDSEG_MAX_IMAGE_UPLOAD_BYTES:
        limit = settings.MEDSEG_MAX_IMAGE_UPLOAD_BYTES // 2**20
        raise MedSegError("too_large", f"{name} is larger than {limit} MB.", attr=field, http_status=413)
    suffix = suffix_by_content(name, _head_of(upload))
    if suffix is not None:
        return suffix
    claimed = suffix_of(name)
    if claimed and whole_number(claimed[1:]) is None and len(claimed) < 6:
        text = f"{name}: files of the kind {claimed} cannot be read. Use PNG, JPG, TIFF, BMP, DICOM, NIfTI, or a ZIP of one DICOM series."
        raise MedSegError("unsupported_type", text, attr=field, http_status=415)
    # The names of DICOM files often have no ending, or end in a number. The reader looks into the file.
    return ".dcm"


def _head_of(upload: File[Any]) -> bytes:
    upload.seek(0)
    head: bytes = upload.read(HEAD_BYTES)
    upload.seek(0)
    return head


def cancel_inference(*, user: Any, inference: InferenceResult) -> InferenceResult:
    require(user, "change", inference)
    with transaction.atomic():
        request_cancel(inference)
        audit.record(user, "cancel", inference)
    return inference


def cancel_batch(*, user: Any, batch: InferenceBatch) -> InferenceBatch:
    """Cancel a batch. Its waiting images end at once, and its running images soon. Finished masks are kept.

    A running batch ends when its images have ended and the manifests of the cancelled ones are written.
    """
    require(user, "change", batch)
    with transaction.atomic():
        request_cancel(batch)
        audit.record(user, "cancel", batch)
        cancel_images(batch.pk)
        note_call(batch.pk)
        # A database that is rebuilt from the manifests then goes on cancelling.
        manifests.keep_up(batch)
        call_on_commit(NOTE_CANCELLED, batch.pk)
    # The batch was queued then, so the only images that can wait are those that were started again by hand.
    if batch.status == batch.WORDS.cancelled:
        note_cancelled_images(batch.pk)
    close_batch_if_done(batch.pk)
    batch.refresh_from_db()
    return batch


def why_not_retryable(inference: InferenceResult) -> str | None:
    """Return the reason why an inference cannot be started again now; None if it can."""
    if inference.model is None:
        return "Its model was deleted."
    batch = inference.batch
    if batch and batch.status == batch.WORDS.working and batch.cancel_requested:
        return "Its batch is being cancelled. Start it again when that has ended."
    return why_not_requeueable(inference)


def retry_inference(*, user: Any, inference: InferenceResult) -> InferenceResult:
    require(user, "change", inference)
    refuse_if(why_not_retryable(inference))
    batch = inference.batch
    with transaction.atomic():
        requeue(inference)
        audit.record(user, "resume", inference)
        if batch and batch.status in (batch.WORDS.failed, batch.WORDS.cancelled):
            # The batch ends again with the last of its images, and may then have a result.
            requeue(batch)
    return inference


def why_not_downloadable(batch: InferenceBatch) -> str | None:
    """Return the reason why the masks of a batch cannot be downloaded now; None if they can."""
    if batch.is_active:
        return f"This batch is {batch.status}. Its masks can be downloaded when the last image is done."
    if not batch.inferences.filter(status="completed").exists():
        return "No image of this batch was segmented, so there are no masks."
    return None


def delete_inference(*, user: Any, inference: InferenceResult) -> None:
    """Delete an inference and its files. A worker that is working on it finds its row gone and discards the result."""
    require(user, "delete", inference)
    prefix = storage.object_key("inferences", inference.uuid)
    checksums = [checksum for _, checksum in objects_of(inference) if checksum]
    owners = [inference.uuid]
    with removal.deletion({InferenceResult: owners}):
        # Somebody else may have deleted the inference meanwhile.
        if InferenceResult.objects.select_for_update().filter(pk=inference.pk).first():
            audit.record(user, "delete", inference)
        inference.delete()
        removal.remove_on_commit(InferenceResult, owners, lambda: storage.delete_prefix(prefix))
        transaction.on_commit(lambda: storage.forget_copies(checksums), robust=True)


def delete_batch(*, user: Any, batch: InferenceBatch) -> None:
    require(user, "delete", batch)
    owner, images = batch.uuid, list(batch.inferences.values_list("uuid", flat=True))
    columns = ("input_sha256", "output_sha256", "certainty_sha256")

    def remove_images() -> None:
        for image in images:
            storage.delete_prefix(storage.object_key("inferences", image))

    with removal.deletion({InferenceBatch: [owner], InferenceResult: list(images)}):
        if InferenceBatch.objects.select_for_update().filter(pk=batch.pk).first():
            audit.record(user, "delete", batch)
        # The images are read again, because a worker may have unpacked some meanwhile.
        images[:] = batch.inferences.values_list("uuid", flat=True)
        checksums = [item for row in batch.inferences.values_list(*columns) for item in row if item]
        batch.delete()
        own = partial(storage.delete_prefix, storage.object_key("batches", owner))
        removal.remove_on_commit(InferenceBatch, [owner], own)
        removal.remove_on_commit(InferenceResult, images, remove_images, later=len(images) > MANY_IMAGES)
        transaction.on_commit(lambda: storage.forget_copies(checksums), robust=True)
