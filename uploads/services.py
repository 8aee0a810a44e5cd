"""What can be asked of uploads: begin, sign, put a part, complete, abort; and, for the apps above, take what is complete."""

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

MAX_PARTS = 10_000  # S3's own limits
LEAST_S3_PART = 5 * 2**20
MAX_SIGNED = 100  # addresses in one answer
ZIP_TAIL = 2**17  # a ZIP's end record with its longest comment, and that of ZIP64 before it


def create_upload(*, user: Any, file_name: str, size: int, purpose: str, sha256: str = "") -> Upload:
    """Begin an upload. The row comes first, so that whatever the store then holds has an owner and is cleaned up."""
    if size < 1:
        raise MedSegError("empty", f"{clean_file_name(file_name)} is empty. Choose another file.", attr="size")
    if size > settings.MEDSEG_MAX_UPLOAD_BYTES:
        limit = settings.MEDSEG_MAX_UPLOAD_BYTES // 2**20
        raise MedSegError("too_large", f"The archive is larger than {limit} MB.", attr="size", http_status=413)
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
        raise MedSegError("invalid_checksum", "A SHA-256 checksum has 64 hexadecimal digits.", attr=attr)
    return text.lower()


def sign_parts(*, upload: Upload, numbers: list[int], checksums: Mapping[str, str]) -> dict[int, str]:
    """Addresses to PUT parts to, by number. The checksums said here are held against the whole file in its check."""
    _check_open(upload)
    if not 1 <= len(numbers) <= MAX_SIGNED:
        raise MedSegError("wrong_number", f"Ask for 1 to {MAX_SIGNED} parts at once.", attr="part_numbers")
    for number in numbers:
        _check_number(upload, number)
    known = {str(number): number for number in numbers}
    said = {known[name]: _checksum(text, "checksums") for name, text in checksums.items() if name in known}
    for number in said:
        _note_checksum(upload, number, said[number])
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
    """Uploads that nobody touches for MEDSEG_UPLOAD_KEEP_HOURS are removed."""
    Upload.objects.filter(pk=upload.pk).update(updated_at=timezone.now())


def list_parts(*, upload: Upload) -> list[dict[str, Any]]:
    """The parts that are there, in S3's words, with the checksum that was said of each."""
    if upload.state != Upload.OPEN:
        raise WrongStateError(f"This upload is {upload.state}; its parts are one file.")
    said = dict(upload.parts.values_list("number", "sha256"))
    return [
        {"PartNumber": number, "Size": size, "ETag": tag, "sha256": said.get(number, "")}
        for number, (size, tag) in sorted(parts_of(upload).stored(upload).items())
    ]


def put_part(*, upload: Upload, number: int, source: Any, length: str) -> str:
    """Keep one part that was sent to the platform itself. Returns its ETag."""
    _check_open(upload)
    _check_number(upload, number)
    backend = parts_of(upload)
    if not isinstance(backend, LocalParts):
        raise WrongStateError("The parts of this upload go to S3, to the addresses that `sign/` gives.")
    if length and length != str(upload.bytes_of(number)):
        raise wrong_size(number, upload.bytes_of(number))
    tag = backend.write(upload, number, source)
    touch(upload)
    return tag


def complete_upload(*, upload: Upload, tags: Mapping[int, str] | None = None) -> Upload:
    """Check that every part is there, make them one file and look whether it is a ZIP. Asking twice does no harm.

    `tags`: what the sender was told of each part; left out, what the store holds is taken.
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
        text = f"{upload.file_name} is not a ZIP file, or it is damaged. Zip the folder that holds the files and upload that."
        raise MedSegError("not_a_zip", text, attr="file_name")
    with transaction.atomic():
        row = Upload.objects.select_for_update().get(pk=upload.pk)
        if row.state == Upload.OPEN:
            if not upload.s3_bucket:  # a part may have been begun anew since
                _check_parts(upload, backend.stored(upload), tags)
            Upload.objects.filter(pk=upload.pk).update(state=Upload.COMPLETE, updated_at=timezone.now())
        elif row.state == Upload.ABORTED:
            raise WrongStateError("This upload was stopped.")
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
    """Stop an upload and remove all of it. Raises WrongStateError when a dataset or batch has it."""
    require(user, "delete", upload)
    with transaction.atomic():
        _mark_aborted(upload)
        audit.record(user, "cancel", upload)
    remove(upload)


def _mark_aborted(upload: Upload) -> None:
    if not Upload.objects.filter(pk=upload.pk).exclude(state=Upload.USED).update(state=Upload.ABORTED):
        raise WrongStateError("This upload is in use. Delete the dataset or batch that was made of it.")


def find_upload(*, user: Any, upload: uuid.UUID, purpose: str) -> Upload:
    """The whole file that a dataset or batch is to be made of, at its final place. Then `mark_used`, in one transaction with the row."""
    row: Upload | None = Upload.objects.visible_to(user).filter(uuid=upload, purpose=purpose).first()
    if row is None:
        text = "This upload does not exist. It may have been removed because nobody used it. Upload the file again."
        raise MedSegError("no_such_upload", text, attr="upload")
    require(user, "change", row)
    if row.state == Upload.OPEN:
        raise WrongStateError("Parts of this upload are missing. Send them and complete it first.")
    if row.state == Upload.ABORTED:
        raise WrongStateError("This upload was stopped.")
    if row.s3_bucket != storage.bucket_name():
        raise WrongStateError("The platform stores its files in another place now. Upload the file again.")
    return row


def place_upload(upload: Upload) -> None:
    """Bring the file to `upload.key` (a rename, or nothing at all)."""
    parts_of(upload).place(upload)


def mark_used(upload: Upload) -> None:
    """Give the file away, once. Call it in the transaction that writes the row which has it now."""
    complete = Upload.objects.filter(pk=upload.pk, state=Upload.COMPLETE)
    if not complete.update(state=Upload.USED, updated_at=timezone.now()):
        raise WrongStateError("This upload was used already. Upload the file again.")
