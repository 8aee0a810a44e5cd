"""Checks whether a stored archive is what was sent, by the checksums of the whole file and of every part."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

from medseg_site.shared.base.text import count_of
from medseg_site.shared.storage import objects as storage
from ml_core.errors import MLError
from uploads.models import Upload

AGAIN = "Upload the file again."


class UploadDamagedError(MLError):
    """The stored file is not the file that was sent."""


def check_upload(owner: uuid.UUID, path: Path) -> None:
    """Check an archive that arrived in parts. One that arrived in one piece is not read.

    Raises UploadDamagedError like checked_sha256.
    """
    if Upload.objects.filter(uuid=owner).exists():
        checked_sha256(owner, path)


def checked_sha256(owner: uuid.UUID, path: Path) -> str:
    """The SHA-256 (hex) of the file, in one pass over it.

    `owner` is the uuid of the dataset or batch, which is also that of its upload. Raises UploadDamagedError when the
    size or an announced checksum differs.
    """
    upload = Upload.objects.filter(uuid=owner).first()
    if upload is None:
        with path.open("rb") as source:
            return storage.sha256_of(source)[0]
    if path.stat().st_size != upload.size:
        reason = f"The archive has {count_of(path.stat().st_size, 'byte')} instead of {upload.size:,}."
        raise UploadDamagedError("damaged_upload", reason, AGAIN)
    announced = dict(upload.parts.values_list("number", "sha256"))
    whole = hashlib.sha256()
    with path.open("rb") as source:
        for number in range(1, upload.part_count + 1):
            part, left = hashlib.sha256(), upload.bytes_of(number)
            while left and (chunk := source.read(min(storage.CHUNK, left))):
                whole.update(chunk)
                if number in announced:
                    part.update(chunk)
                left -= len(chunk)
            if number in announced and part.hexdigest() != announced[number]:
                reason = f"Part {number} of the archive was damaged on its way: its checksum is not the announced one."
                raise UploadDamagedError("damaged_upload", reason, AGAIN)
    if upload.sha256 and whole.hexdigest() != upload.sha256:
        reason = "The archive was damaged on its way: its checksum is not the announced one."
        raise UploadDamagedError("damaged_upload", reason, AGAIN)
    return whole.hexdigest()
