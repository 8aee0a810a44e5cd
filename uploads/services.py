"""Everything that can be done with uploads: begin, sign, put a part, complete, abort.

The apps above use the last functions here to take the file of a complete upload.
"""

from __future__ import annotations

import io
import re
import uuid
import zipfile
from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from accounts import audit
from accounts.access import require
from accounts.services import personal_project
from medseg_site.shared.base.errors import MedSegError, WrongStateError
from medseg_site.shared.base.text import clean_file_name, count_of
from medseg_site.shared.storage import objects as storage
from uploads.backends import parts_of
from uploads.cleaning import remove
from uploads.local import LocalParts, wrong_size
from uploads.models import Upload, UploadPart

# S3 takes at most so many parts, and no part but the last may have fewer bytes than LEAST_S3_PART.
MAX_PARTS = 10_000
LEAST_S3_PART = 5 * 2**20
# One answer holds at most so many addresses.
MAX_SIGNED = 100
# So many bytes hold the end record of a ZIP with its longest comment, and the record of ZIP64 before it.
ZIP_TAIL = 2**17


def create_upload(*, user: Any, file_name: str, size: int, purpose: str, sha256: str = "") -> Upload:
    """Begin an upload. `size` is in bytes; `sha256` (hex) is the checksum of the whole file, if it is known.

    The row is written first, so that everything in the store belongs to a row and is cleaned up. Raises MedSegError
    when the file is empty or too large, or when the checksum is not one.
    """
    if size < 1:
        raise MedSegError("empty", f"{clean_file_name(file_name)} is empty. Choose another file.", attr="size")
    if size > settings.MEDSEG_MAX_UPLOAD_BYTES:
        limit = settings.MEDSEG_MAX_UPLOAD_BYTES // 2**20
        text = f"The archive is larger than {limit} MB. Split it into smaller ones."
        raise MedSegError("too_large", text, attr="size", http_status=413)
    upload = Upload.objects.create(
        created_by=user,
        project=personal_project(user),
        purpose=purpose,
        file_name=clean_file_name(file_name),
        size=size,
        part_size=_part_size(size),
        sha256=_checksum(sha256, "sha256"),
        s3_bucket=storage.bucket_name(),
    )
    try:
        upload.backend_id = parts_of(upload).begin(upload)
    except Exception:
        upload.delete()
        raise
    upload.save(update_fields=["backend_id"])
    return upload


def _part_size(size: int) -> int:
    least = max(settings.MEDSEG_UPLOAD_PART_BYTES, LEAST_S3_PART if storage.is_remote() else 1)
    return max(least, -(-size // MAX_PARTS))


def _checksum(text: str, attr: str) -> str:
    if text and not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        problem = "A SHA-256 checksum has 64 hexadecimal digits. Send it like that, or leave it out."
        raise MedSegError("invalid_checksum", problem, attr=attr)
    return text.lower()


def sign_parts(*, upload: Upload, numbers: list[int], checksums: Mapping[str, str]) -> dict[int, str]:
    """The addresses to PUT parts to, by number of the part.

    `checksums` (number → SHA-256 in hex) are compared with the whole file when it is checked. Raises MedSegError for a
    bad number or checksum, and WrongStateError when the upload is not open.
    """
    _check_open(upload)
    if not 1 <= len(numbers) <= MAX_SIGNED:
        raise MedSegError("wrong_number", f"Ask for 1 to {MAX_SIGNED} parts at once.", attr="part_numbers")
    for number in numbers:
        _check_number(upload, number)
    known = {str(number): number for number in numbers}
    announced = {known[name]: _checksum(text, "checksums") for name, text in checksums.items() if name in known}
    for number in announced:
        _note_checksum(upload, number, announced[number])
    touch(upload)
    return parts_of(upload).sign(upload, numbers)


def _note_checksum(upload: Upload, number: int, sha256: str) -> None:
    part, is_new = UploadPart.objects.get_or_create(upload=upload, number=number, defaults={"sha256": sha256})
    if not is_new and part.sha256 != sha256:
        UploadPart.objects.filter(pk=part.pk).update(sha256=sha256, is_stored=False)


def _check_open(upload: Upload) -> None:
    if upload.state != Upload.OPEN:
        raise WrongStateError(f"This upload is {upload.state}, so it takes no more parts.")


def _check_number(upload: Upload, number: int) -> None:
    if not 1 <= number <= upload.part_count:
        text = f"There is no part {number}: this upload has the parts 1 to {upload.part_count}."
        raise MedSegError("no_such_part", text, attr="part_numbers")


def touch(upload: Upload) -> None:
    """Note that somebody uses the upload. One that nobody touches for MEDSEG_UPLOAD_KEEP_HOURS is removed."""
    Upload.objects.filter(pk=upload.pk).update(updated_at=timezone.now())


def list_parts(*, upload: Upload) -> list[dict[str, Any]]:
    """The parts that have arrived, with the field names of S3 and the checksum that was announced for each.

    Raises WrongStateError when the upload is not open.
    """
    if upload.state != Upload.OPEN:
        raise WrongStateError(f"This upload is {upload.state}, so it has no separate parts any more.")
    announced = dict(upload.parts.values_list("number", "sha256"))
    return [
        {"PartNumber": number, "Size": size, "ETag": tag, "sha256": announced.get(number, "")}
        for number, (size, tag) in sorted(parts_of(upload).stored(upload).items())
    ]


def put_part(*, upload: Upload, number: int, source: Any, length: str) -> str:
    """Store one part that was sent to the platform itself. Returns its ETag.

    `length` is the Content-Length of the request, or "". Raises WrongStateError when the parts go to S3.
    """
    _check_open(upload)
    _check_number(upload, number)
    backend = parts_of(upload)
    if not isinstance(backend, LocalParts):
        raise WrongStateError("The parts of this upload go to S3. Send them to the addresses that `sign/` gives.")
    if length and length != str(upload.bytes_of(number)):
        raise wrong_size(number, upload.bytes_of(number))
    tag = backend.write(upload, number, source)
    touch(upload)
    return tag


def complete_upload(*, upload: Upload, tags: Mapping[int, str] | None = None) -> Upload:
    """Check that every part has arrived, join them into one file, and check that it is a ZIP. It may be called twice.

    `tags` holds the ETag that the sender got for each part. Without it, the parts are taken as the store holds them.
    Raises MedSegError when a part is missing or wrong, or when the file is no ZIP. Only in the last case, the upload is
    removed.
    """
    if upload.state in (Upload.COMPLETE, Upload.USED):
        return upload
    _check_open(upload)
    backend = parts_of(upload)
    stored = backend.stored(upload)
    _check_parts(upload, stored, tags)
    backend.assemble(upload, {number: tag for number, (_, tag) in stored.items()})
    if not zipfile.is_zipfile(io.BytesIO(backend.tail(upload, ZIP_TAIL))):
        _mark_aborted(upload)
        remove(upload)
        cure = "Zip the folder that holds the files and upload that."
        text = f"{upload.file_name} is not a ZIP file, or it is damaged. {cure}"
        raise MedSegError("not_a_zip", text, attr="file_name")
    with transaction.atomic():
        row = Upload.objects.select_for_update().get(pk=upload.pk)
        if row.state == Upload.OPEN:
            # In the local folder a part may have been sent again since, and have only half arrived.
            if not upload.s3_bucket:
                _check_parts(upload, backend.stored(upload), tags)
            Upload.objects.filter(pk=upload.pk).update(state=Upload.COMPLETE, updated_at=timezone.now())
        elif row.state == Upload.ABORTED:
            raise WrongStateError("This upload was stopped. Begin it again.")
    upload.refresh_from_db()
    return upload


def _check_parts(upload: Upload, stored: Mapping[int, tuple[int, str]], tags: Mapping[int, str] | None) -> None:
    missing = [number for number in range(1, upload.part_count + 1) if number not in stored]
    if missing:
        shown = ", ".join(map(str, missing[:10])) + (" …" if len(missing) > 10 else "")
        text = f"Missing parts: {shown} ({len(missing)} of {upload.part_count}). Send them, then complete."
        raise MedSegError("missing_parts", text, attr="parts")
    for number, (size, tag) in stored.items():
        if number > upload.part_count or size != upload.bytes_of(number):
            text = f"Part {number} has {count_of(size, 'byte')}, which is the wrong size. Send it again."
            raise MedSegError("wrong_size", text, attr="parts")
        if tags is not None and tag and tags.get(number, "").strip('"') != tag:
            text = f"Part {number} is not the one that was announced: its ETag differs. Send it again."
            raise MedSegError("wrong_etag", text, attr="parts")


def abort_upload(*, user: Any, upload: Upload) -> None:
    """Stop an upload and remove its parts and its row. Raises WrongStateError when a dataset or batch has its file."""
    require(user, "delete", upload)
    with transaction.atomic():
        _mark_aborted(upload)
        audit.record(user, "cancel", upload)
    remove(upload)


def _mark_aborted(upload: Upload) -> None:
    if not Upload.objects.filter(pk=upload.pk).exclude(state=Upload.USED).update(state=Upload.ABORTED):
        raise WrongStateError("This upload is in use. Delete the dataset or batch that was made of it.")


def find_upload(*, user: Any, upload: uuid.UUID, purpose: str) -> Upload:
    """Find the complete upload that a dataset or batch is to be made from.

    Then call `place_upload`, and `mark_used` in the transaction that writes the new row. Raises MedSegError when the
    user has no such upload or may not use it, and WrongStateError when it is not complete.
    """
    row: Upload | None = Upload.objects.visible_to(user).filter(uuid=upload, purpose=purpose).first()
    if row is None:
        text = "This upload does not exist. It may have been removed because nobody used it. Upload the file again."
        raise MedSegError("no_such_upload", text, attr="upload")
    require(user, "change", row)
    if row.state == Upload.OPEN:
        raise WrongStateError("Parts of this upload are missing. Send them and complete it first.")
    if row.state == Upload.ABORTED:
        raise WrongStateError("This upload was stopped. Upload the file again.")
    if row.s3_bucket != storage.bucket_name():
        raise WrongStateError("The platform stores its files in another place now. Upload the file again.")
    return row


def place_upload(upload: Upload) -> None:
    """Move the file to `upload.key`. In S3 it is there already; in the local folder this is a rename."""
    parts_of(upload).place(upload)


def mark_used(upload: Upload) -> None:
    """Hand the file over to a dataset or batch. Call it in the transaction that writes that row.

    Raises WrongStateError when the upload was used before.
    """
    complete = Upload.objects.filter(pk=upload.pk, state=Upload.COMPLETE)
    if not complete.update(state=Upload.USED, updated_at=timezone.now()):
        raise WrongStateError("This upload was used already. Upload the file again.")
