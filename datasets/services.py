"""What can be asked of datasets. Pages, API and admin all come through here."""

from __future__ import annotations

import re
import uuid
from typing import Any

from django.conf import settings
from django.core.files import File
from django.db import transaction

from datasets.models import Dataset, DatasetClass
from datasets.tasks import check_dataset
from datasets.url_import import UrlImportError, check_url
from medseg_site.shared import manifests, storage
from medseg_site.shared.catalog import objects_of
from medseg_site.shared.errors import MedSegError, WrongStateError
from medseg_site.shared.jobs import enqueue_on_commit, requeue
from medseg_site.shared.text import clean_file_name, clean_name
from uploads.services import find_upload, mark_used, place_upload


def create_dataset_from_upload(
    *, user: Any, name: str, archive: File[Any], description: str = "", is_synthetic: bool = False
) -> Dataset:
    """Store the ZIP and start its check."""
    name = clean_name(name)
    if not archive.size:
        raise MedSegError("empty", "The archive is empty. Choose a ZIP file with images/ and masks/.", attr="archive")
    if archive.size > settings.MEDSEG_MAX_UPLOAD_BYTES:
        limit = settings.MEDSEG_MAX_UPLOAD_BYTES // 2**20
        raise MedSegError("too_large", f"The archive is larger than {limit} MB.", attr="archive", http_status=413)
    if not storage.is_zip(archive):
        file_name = clean_file_name(archive.name)
        text = f"{file_name} is not a ZIP file, or it is damaged. Zip the folder that holds images/ and masks/ and upload that."
        raise MedSegError("not_a_zip", text, attr="archive")
    owner = uuid.uuid4()
    stored = storage.store_upload(storage.object_key("datasets", owner, "archive.zip"), archive)
    try:
        return _create(
            user=user,
            uuid=owner,
            name=name,
            description=description,
            archive_name=clean_file_name(archive.name),
            s3_key=stored.key,
            checksum=stored.sha256,
            total_size_mb=round(stored.size / 2**20, 3),
            is_synthetic=is_synthetic,
        )
    except Exception:
        storage.delete_prefix(storage.object_key("datasets", owner))
        raise


def create_dataset_from_parts(*, user: Any, name: str, upload: uuid.UUID, description: str = "") -> Dataset:
    """A dataset of an archive that came in parts; its check finds out the checksum. Asking twice gives the same dataset."""
    name = clean_name(name)
    found = find_upload(user=user, upload=upload, purpose="dataset")
    made: Dataset | None = Dataset.objects.visible_to(user).filter(uuid=found.uuid).first()
    if made:
        return made  # the answer to the first request was lost
    place_upload(found)
    with transaction.atomic():
        mark_used(found)
        return _create(
            user=user,
            uuid=found.uuid,
            name=name,
            description=description,
            archive_name=found.file_name,
            s3_key=found.key,
            total_size_mb=round(found.size / 2**20, 3),
        )


def create_dataset_from_url(*, user: Any, name: str, source_url: str, description: str = "") -> Dataset:
    """Start the download of a ZIP; a worker fetches and checks it."""
    name = clean_name(name)
    try:
        check_url(source_url, allow_private=settings.MEDSEG_URL_IMPORT_ALLOW_PRIVATE)
    except UrlImportError as error:
        raise MedSegError(error.code, str(error), attr="source_url") from None
    return _create(user=user, uuid=uuid.uuid4(), name=name, description=description, source_url=source_url)


def _create(*, user: Any, **columns: Any) -> Dataset:
    with transaction.atomic():
        dataset = Dataset.objects.create(
            created_by=user, status=Dataset.WORDS.queued, s3_bucket=storage.bucket_name(), **columns
        )
        manifests.keep_new(dataset)
        enqueue_on_commit(check_dataset, dataset.pk)
    return dataset


def recheck_dataset(*, dataset: Dataset) -> Dataset:
    """Check an archive that was refused once more, for instance after a limit was raised."""
    if not dataset.s3_key and not dataset.source_url:
        raise WrongStateError("There is no archive to check. Upload it again.")
    with transaction.atomic():
        requeue(dataset, issues=[], issue_count=0)
        enqueue_on_commit(check_dataset, dataset.pk)
    return dataset


def delete_dataset(*, dataset: Dataset) -> None:
    """Remove the row and every object. Models trained on it stay. Raises WrongStateError while a training reads it."""
    with transaction.atomic():
        locked = Dataset.objects.select_for_update().get(pk=dataset.pk)
        if locked.models.filter(status__in=["queued", "training"]).exists():
            raise WrongStateError("A training reads this dataset. Wait until it has ended, or cancel it first.")
        prefix = storage.object_key("datasets", locked.uuid)
        owner, checksums = locked.uuid, [checksum for _, checksum in objects_of(locked) if checksum]
        locked.delete()
        transaction.on_commit(lambda: storage.delete_prefix(prefix))
        transaction.on_commit(lambda: storage.forget_local(owner))
        transaction.on_commit(lambda: storage.forget_copies(checksums))


def rename_class(*, dataset: Dataset, value: int, name: str, color: str | None = None) -> DatasetClass:
    item = dataset.classes.filter(value=value).first()
    if item is None:
        raise MedSegError("unknown_class", f"The dataset has no class with the value {value}.", attr="value")
    item.name = clean_name(name, maximum=100)
    if color:
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", color):
            raise MedSegError("invalid_color", f"{color!r} is not a colour such as #d63939.", attr="color")
        item.color = color.lower()
    with transaction.atomic():
        item.save(update_fields=["name", "color"])
        manifests.keep_up(dataset)
    return item
