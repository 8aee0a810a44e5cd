"""Everything that can be done with datasets. Pages, API and admin all call these functions."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.files import File
from django.db import transaction
from django.db.models import Max

from accounts import audit
from accounts.access import require
from accounts.services import personal_project
from datasets.models import Dataset, DatasetClass, decision_of
from datasets.url_import import UrlImportError, check_url
from medseg_site.shared.base.errors import MedSegError, WrongStateError, refuse_if
from medseg_site.shared.base.text import clean_file_name, clean_name
from medseg_site.shared.catalogue import manifests, removal
from medseg_site.shared.catalogue.declarations import objects_of, owner_of
from medseg_site.shared.jobs.messages import send_on_commit
from medseg_site.shared.jobs.requests import request_cancel, requeue, why_not_requeueable
from medseg_site.shared.recovery.sweep import remove_remains
from medseg_site.shared.storage import objects as storage
from medseg_site.shared.storage import scratch
from ml_core.dataset.findings import DatasetRefusedError
from ml_core.dataset.reading import Reading, changed
from uploads.services import find_upload, mark_used, place_upload

# A worker removes the objects of a dataset with more samples than this, so that the request need not wait.
MANY_SAMPLES = 500


def create_dataset_from_upload(
    *,
    user: Any,
    name: str,
    archive: File[Any],
    description: str = "",
    is_synthetic: bool = False,
    reading: dict[str, Any] | None = None,
    change: Change | None = None,
) -> Dataset:
    """Store the ZIP and start its check. With `change`, the ZIP brings the new pairs of a later version.

    Raises MedSegError when the archive is empty, too large or no ZIP file, or when the name is not allowed.
    """
    name = clean_name(name)
    if not archive.size:
        raise MedSegError("empty", "The archive is empty. Choose a ZIP file with images/ and masks/.", attr="archive")
    if archive.size > settings.MEDSEG_MAX_UPLOAD_BYTES:
        limit = settings.MEDSEG_MAX_UPLOAD_BYTES // 2**20
        text = f"The archive is larger than {limit} MB. Split it into several datasets."
        raise MedSegError("too_large", text, attr="archive", http_status=413)
    if not storage.is_zip(archive):
        file_name = clean_file_name(archive.name)
        cure = "Zip the folder that holds images/ and masks/ and upload that."
        raise MedSegError("not_a_zip", f"{file_name} is not a ZIP file, or it is damaged. {cure}", attr="archive")
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
            reading=reading or {},
            change=change,
        )
    except Exception:
        storage.delete_prefix(storage.object_key("datasets", owner))
        raise


def create_dataset_from_parts(
    *,
    user: Any,
    name: str,
    upload: uuid.UUID,
    description: str = "",
    reading: dict[str, Any] | None = None,
    change: Change | None = None,
) -> Dataset:
    """Create a dataset that arrived in parts. The same upload always gives the same dataset.

    The check computes the checksum. Raises MedSegError when the user has no such upload.
    """
    name = clean_name(name)
    upload_row = find_upload(user=user, upload=upload, purpose="dataset")
    existing: Dataset | None = Dataset.objects.visible_to(user).filter(uuid=upload_row.uuid).first()
    # The client asks again when the answer to its first request was lost.
    if existing:
        return existing
    place_upload(upload_row)
    with transaction.atomic():
        mark_used(upload_row)
        return _create(
            user=user,
            uuid=upload_row.uuid,
            name=name,
            description=description,
            archive_name=upload_row.file_name,
            s3_key=upload_row.key,
            total_size_mb=round(upload_row.size / 2**20, 3),
            project_id=upload_row.project_id,
            reading=reading or {},
            change=change,
        )


def create_dataset_from_url(
    *,
    user: Any,
    name: str,
    source_url: str,
    description: str = "",
    reading: dict[str, Any] | None = None,
    change: Change | None = None,
) -> Dataset:
    """Create a dataset from an address. A worker downloads the ZIP and checks it.

    Raises MedSegError when the address cannot be imported.
    """
    name = clean_name(name)
    try:
        check_url(source_url, allow_private=settings.MEDSEG_URL_IMPORT_ALLOW_PRIVATE)
    except UrlImportError as error:
        raise MedSegError(error.code, str(error), attr="source_url") from None
    columns = {"name": name, "description": description, "source_url": source_url, "reading": reading or {}}
    return _create(user=user, uuid=uuid.uuid4(), change=change, **columns)


@dataclass(frozen=True)
class Change:
    """How a later version differs from `base`: the samples with the names in `leave_out` are not in it."""

    base: Dataset
    leave_out: Sequence[str] = ()


def create_version(
    *,
    user: Any,
    base: Dataset,
    archive: File[Any] | None = None,
    upload: uuid.UUID | None = None,
    source_url: str = "",
    leave_out: Sequence[str] = (),
    reading: dict[str, Any] | None = None,
) -> Dataset:
    """Create a new version of `base`, in the same project.

    A pair of the new archive replaces the sample of the same name, or is added. The samples in `leave_out` are dropped.
    Raises MedSegError when no change is asked for or a name is unknown, and WrongStateError when `base` is not ready.
    """
    require(user, "change", base)
    change = Change(base, list(dict.fromkeys(leave_out)))
    if not (archive or upload or source_url or leave_out or reading):
        text = "Give a ZIP with new or corrected pairs, names of images to leave out, or how the masks are to be read."
        raise MedSegError("required", text)
    if reading and not _is_read_otherwise(base, reading) and not (archive or upload or source_url or leave_out):
        raise MedSegError(
            "nothing_new", "The masks are read so already. Change a value, and try again.", attr="reading"
        )
    if unknown := _unknown_names(change):
        raise MedSegError("unknown_sample", f"The dataset has no images with these names: {unknown}.", attr="leave_out")
    common: dict[str, Any] = {"user": user, "name": base.name, "description": base.description, "change": change}
    common["reading"] = reading or {}
    if archive:
        return create_dataset_from_upload(archive=archive, **common)
    if upload:
        return create_dataset_from_parts(upload=upload, **common)
    if source_url:
        return create_dataset_from_url(source_url=source_url, **common)
    return _create(uuid=uuid.uuid4(), **common)


def _is_read_otherwise(base: Dataset, reading: dict[str, Any]) -> bool:
    """Whether the reading differs from that of `base`.

    Raises MedSegError when the masks cannot be read so without the files as they were uploaded.
    """
    decision = decision_of(base)
    try:
        return changed(decision, Reading.from_json(reading)) != decision
    except DatasetRefusedError as error:
        raise MedSegError(error.code, str(error), attr="reading") from None


def _unknown_names(change: Change) -> str:
    known = set(change.base.samples.values_list("name", flat=True)) if change.leave_out else set()
    unknown = [name for name in change.leave_out if name not in known]
    return ", ".join(name[:60] for name in unknown[:5]) + (" …" if len(unknown) > 5 else "")


def _create(*, user: Any, change: Change | None = None, **columns: Any) -> Dataset:
    """Create the row and send it to a worker.

    It is in the user's personal project, unless `columns` or `change` name another one.
    """
    if change is None and "project_id" not in columns:
        columns["project_id"] = personal_project(user).pk
    with transaction.atomic():
        dataset = Dataset.objects.create(
            created_by=user,
            status=Dataset.WORDS.queued,
            s3_bucket=storage.bucket_name(),
            **{"family": columns["uuid"], **columns, **(_version_columns(change) if change else {})},
        )
        manifests.keep_new(dataset)
        if change:
            # The manifest of a dataset that was stored before there were versions does not name its family.
            manifests.keep_up(change.base)
        audit.record(user, "upload", dataset)
        send_on_commit(dataset)
    return dataset


def _version_columns(change: Change) -> dict[str, Any]:
    """The columns of the family's next version.

    The family's rows are locked, so that nobody takes the same number or deletes the base meanwhile.
    """
    lock_family(change.base)
    # The rows are read by a second query. On Postgres, a locking query does not see what was committed while it waited.
    family = Dataset.objects.filter(family=change.base.family)
    base = (
        family.filter(pk=change.base.pk, status=Dataset.WORDS.done)
        .only("family", "version", "is_synthetic", "project")
        .first()
    )
    if base is None:
        raise WrongStateError("Only a ready dataset can have a new version. Wait for its check.")
    last = family.aggregate(Max("version"))["version__max"]
    return {
        "project_id": base.project_id,
        "family": base.family,
        "version": last + 1,
        "based_on": base.version,
        "leave_out": list(change.leave_out),
        "is_synthetic": base.is_synthetic,
    }


def lock_family(dataset: Dataset) -> None:
    """Lock the rows of all versions of a dataset until the transaction ends."""
    list(Dataset.objects.select_for_update().filter(family=dataset.family).order_by("pk").values_list("pk"))


def why_not_recheckable(dataset: Dataset) -> str | None:
    """The reason why the check cannot be started again now; None when it can."""
    only_leaves_out = dataset.based_on is not None and not dataset.archive_name
    has_archive = bool(dataset.s3_key or dataset.source_url or only_leaves_out)
    return why_not_requeueable(dataset) or (None if has_archive else "There is no archive to check. Upload it again.")


def recheck_dataset(*, user: Any, dataset: Dataset) -> Dataset:
    """Check a dataset that ended as `error` once more, for instance after a limit was raised.

    Raises WrongStateError when its check cannot be started again.
    """
    require(user, "change", dataset)
    refuse_if(why_not_recheckable(dataset))
    with transaction.atomic():
        # delete_dataset takes the same lock: the version that this one is based on cannot be deleted meanwhile.
        lock_family(dataset)
        requeue(dataset, issues=[], issue_count=0)
        audit.record(user, "resume", dataset)
    return dataset


def cancel_dataset(*, user: Any, dataset: Dataset) -> Dataset:
    """Stop the check, or the download before it. The archive stays, so that it can be checked again."""
    require(user, "change", dataset)
    with transaction.atomic():
        request_cancel(dataset)
        audit.record(user, "cancel", dataset)
    return dataset


def delete_dataset(*, user: Any, dataset: Dataset) -> None:
    """Remove the row and every object. Models that were trained on the dataset stay.

    Raises WrongStateError while a training reads it or a newer version is being made from it.
    """
    require(user, "delete", dataset)
    owner = dataset.uuid
    refuse_if(why_not_deletable(dataset))
    # A check that is still running may have stored any number of samples, so its dataset counts as large.
    is_large = dataset.is_working or dataset.file_count > MANY_SAMPLES
    owners, checksums = _traces_of(dataset) if is_large else ([owner], [])
    with removal.deletion({Dataset: [owner]}):
        lock_family(dataset)
        locked = Dataset.objects.get(pk=dataset.pk)
        refuse_if(why_not_deletable(locked))
        objects = {} if is_large else dict(objects_of(locked))
        audit.record(user, "delete", locked)
        locked.delete()
        if is_large:
            removal.remove_on_commit(Dataset, owners, lambda: remove_remains(Dataset, owners), later=True)
            transaction.on_commit(lambda: storage.forget_copies(checksums), robust=True)
        else:
            removal.remove_on_commit(Dataset, owners, lambda: _delete_objects(locked, objects))
        transaction.on_commit(lambda: scratch.forget_local(owner), robust=True)


def _traces_of(dataset: Dataset) -> tuple[list[uuid.UUID], list[str]]:
    """The uuids of the datasets whose objects this one names, and the checksums of which this machine may have copies.

    They are read before the transaction, which would keep everybody else from writing meanwhile. That is safe, because
    a ready dataset does not change.
    """
    owners, checksums = {dataset.uuid}, {dataset.checksum} - {""}
    columns = ("image_key", "mask_key", "thumbnail_key", "image_sha256", "mask_sha256")
    for *keys, image, mask in dataset.samples.values_list(*columns).iterator(chunk_size=2000):
        owners.update(owner for key in keys if (owner := owner_of(key.split("/")[1])))
        if storage.is_remote():
            checksums.update((image, mask))
    return sorted(owners), sorted(checksums)


def why_not_deletable(dataset: Dataset) -> str | None:
    """The reason why the dataset cannot be deleted now; None when it can."""
    if dataset.models.filter(status__in=["queued", "training"]).exists():
        return "A training reads this dataset. Wait until it has ended, or cancel it first."
    later = Dataset.objects.filter(family=dataset.family, based_on=dataset.version)
    if later.filter(status__in=[Dataset.WORDS.queued, Dataset.WORDS.working]).exists():
        return "A newer version is being made from this one. Wait until it is checked, or delete it."
    return None


def _delete_objects(dataset: Dataset, named: dict[str, str]) -> None:
    """Delete all objects below the dataset's prefix and all those in `named` (key → SHA-256).

    `named` may hold objects of earlier versions. An object that another version names stays.
    """
    prefix = storage.object_key("datasets", dataset.uuid)
    others = Dataset.objects.filter(family=dataset.family)
    if not others.exists():
        storage.delete_prefix(prefix)
        gone = {key for key in named if not key.startswith(f"{prefix}/")}
        storage.delete_objects(gone)
        storage.forget_copies(checksum for checksum in named.values() if checksum)
        return
    still = {key for row in others for key, _ in objects_of(row)}
    gone = {*(item.key for item in storage.objects_below(prefix)), *named} - still
    storage.delete_objects(gone)
    storage.forget_copies(checksum for key, checksum in named.items() if checksum and key in gone)


def why_not_trainable(dataset: Dataset) -> str | None:
    """The reason why no model can be trained on the dataset now; None when one can."""
    if dataset.status == Dataset.WORDS.done:
        return None
    if dataset.is_active:
        return "The check of this dataset is not done yet. Wait for it."
    if dataset.is_cancelled:
        return "The check of this dataset was cancelled. Check it again first."
    return "This dataset could not be used. Fix what its check found, and upload it again."


def rename_class(*, user: Any, dataset: Dataset, value: int, name: str, color: str | None = None) -> DatasetClass:
    """Give the class with this value another name and, if given, another colour (#rrggbb).

    Raises MedSegError when there is no such class, or when the name or the colour is not allowed.
    """
    require(user, "change", dataset)
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
