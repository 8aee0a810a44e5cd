"""Stores parts in the local folder. Each part is written to its place in one sparse file of the full size.

A part is recorded only after its bytes are on the disk (fsync). A crash at any moment therefore loses at most the parts
that were on their way. The file needs no joining at the end, and only a rename brings it to its final place.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path
from typing import IO, Any

from django.core.files.storage import default_storage
from django.db import transaction
from django.urls import reverse

from medseg_site.shared.base.errors import MedSegError, WrongStateError
from medseg_site.shared.base.text import count_of
from medseg_site.shared.storage import objects as storage
from uploads.models import Upload, UploadPart

# So many bytes of the disk stay free for the database and the logs.
SPARE_BYTES = 2**28


def _path(upload: Upload) -> Path:
    return Path(default_storage.path(storage.object_key("uploads", upload.uuid, "archive.zip")))


def disk_full() -> MedSegError:
    """Return the error (507) for a full disk."""
    text = "The server's disk is full. Free some space there; the upload then goes on where it stopped."
    return MedSegError("disk_full", text, http_status=507)


class LocalParts:
    """Keeps the parts of uploads in the local folder. It has the methods of uploads.backends.Parts, and `write`."""

    def begin(self, upload: Upload) -> str:
        path = _path(upload)
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < upload.size + SPARE_BYTES:
            raise disk_full()
        with path.open("wb") as file:
            file.truncate(upload.size)
        return ""

    def sign(self, upload: Upload, numbers: list[int]) -> dict[int, str]:
        """Return the addresses to PUT parts to, by number. They are paths on the platform itself.

        The login protects them like every other address.
        """
        return {number: reverse("upload-part", args=[str(upload.uuid), number]) for number in numbers}

    def stored(self, upload: Upload) -> dict[int, tuple[int, str]]:
        """Return the size in bytes and the ETag (the SHA-256) of each part that has arrived, by number."""
        rows = upload.parts.filter(is_stored=True).values_list("number", "sha256")
        return {number: (upload.bytes_of(number), sha256) for number, sha256 in rows}

    def write(self, upload: Upload, number: int, source: IO[bytes] | Any) -> str:
        """Write the bytes of one part to their place and record it. Returns its ETag (its SHA-256).

        Raises MedSegError when the size or the checksum is wrong or the disk is full, and WrongStateError when the
        upload is not open any more or its file is gone.
        """
        size, digest, start = upload.bytes_of(number), hashlib.sha256(), (number - 1) * upload.part_size
        announced = self._forget(upload, number)
        try:
            descriptor = os.open(_path(upload), os.O_WRONLY)
        except FileNotFoundError:
            raise WrongStateError("The parts that had arrived are gone. Begin the upload again.") from None
        try:
            left = size
            while chunk := source.read(storage.CHUNK):
                if len(chunk) > left:
                    raise wrong_size(number, size)
                digest.update(chunk)
                _write_all(descriptor, chunk, start + size - left)
                left -= len(chunk)
            if left:
                raise wrong_size(number, size)
            os.fdatasync(descriptor)
        except OSError as error:
            raise disk_full() if error.errno in (errno.ENOSPC, errno.EDQUOT) else error from error
        finally:
            os.close(descriptor)
        if announced and announced != digest.hexdigest():
            text = f"Part {number} was damaged on its way: its checksum is not the announced one. Send it again."
            raise MedSegError("bad_checksum", text)
        values = {"sha256": digest.hexdigest(), "is_stored": True}
        UploadPart.objects.update_or_create(upload=upload, number=number, defaults=values)
        return digest.hexdigest()

    def _forget(self, upload: Upload, number: int) -> str:
        """Forget that a part has arrived, so that it does not count while it is written again.

        Returns the checksum that the sender announced, or "" without one.
        """
        with transaction.atomic():
            row = Upload.objects.select_for_update().get(pk=upload.pk)
            if row.state != Upload.OPEN:
                raise WrongStateError(f"This upload is {row.state}, so it takes no more parts.")
            part = row.parts.filter(number=number).first()
            if part is None:
                return ""
            if part.is_stored:
                part.delete()
                return ""
            announced: str = part.sha256
            return announced

    def assemble(self, upload: Upload, tags: dict[int, str]) -> None:
        """Do nothing: the parts are in their places in the file already."""

    def tail(self, upload: Upload, length: int) -> bytes:
        with _path(upload).open("rb") as file:
            file.seek(max(0, upload.size - length))
            return file.read()

    def place(self, upload: Upload) -> None:
        """Move the whole file to its final place. A second call changes nothing.

        Raises WrongStateError when the file is gone.
        """
        source, target = _path(upload), Path(default_storage.path(upload.key))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(source, target)
        except FileNotFoundError:
            if not target.is_file():
                raise WrongStateError("The uploaded file is gone. Upload it again.") from None
        shutil.rmtree(source.parent, ignore_errors=True)

    def remove(self, upload: Upload) -> None:
        # The order matters: a file that is being moved at this moment is found in one of the two places.
        storage.delete_prefix(storage.object_key("uploads", upload.uuid))
        storage.delete_prefix(upload.key.rpartition("/")[0])


def wrong_size(number: int, size: int) -> MedSegError:
    return MedSegError(
        "wrong_size", f"Part {number} must have {count_of(size, 'byte')}. Cut the file as the upload says."
    )


def _write_all(descriptor: int, chunk: bytes, offset: int) -> None:
    view = memoryview(chunk)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
