"""The checksum of a whole uploaded archive, and whether it is what its sender said: of the whole, and of every part."""

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
    """What is stored is not what was sent."""


def check_upload(owner: uuid.UUID, path: Path) -> None:
    """The same for whoever needs no checksum: archives that came in one piece are not read."""
    if Upload.objects.filter(uuid=owner).exists():
        checked_sha256(owner, path)


def checked_sha256(owner: uuid.UUID, path: Path) -> str:
    """SHA-256 (hex) of the file, in one pass over it. Raises UploadDamagedError where it differs from what was said.

    `owner` is the uuid of the dataset or batch, which is also that of its upload.
    """
    upload = Upload.objects.filter(uuid=owner).first()
    if upload is None:
        with path.open("rb") as source:
            return storage.sha256_of(source)[0]
    if path.stat().st_size != upload.size:
        reason = f"The archive has {count_of(path.stat().st_size, 'byte')} instead of {upload.size}."
        raise UploadDamagedError("damaged_upload", reason, AGAIN)
    said = dict(upload.parts.values_list("number", "sha256"))
    whole = hashlib.sha256()
    with path.open("rb") as source:
        for number in range(1, upload.part_count + 1):
            part, left = hashlib.sha256(), upload.bytes_of(number)
            while left and (chunk := source.read(min(storage.CHUNK, left))):
                whole.update(chunk)
                if number in said:
                    part.update(chunk)
                left -= len(chunk)
            if number in said and part.hexdigest() != said[number]:
                reason = (
                    f"Part {number} of the archive was damaged on its way: its checksum is not the one that was sent."
                )
                raise UploadDamagedError("damaged_upload", reason, AGAIN)
    if upload.sha256 and whole.hexdigest() != upload.sha256:
        raise UploadDamagedError("damaged_upload", "The archive's checksum is not the one that was sent.", AGAIN)
    return whole.hexdigest()
