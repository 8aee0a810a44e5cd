"""The two places where the parts of an upload go: an S3 bucket, or the local folder."""

from __future__ import annotations

from typing import Protocol

from uploads.local import LocalParts
from uploads.models import Upload
from uploads.s3 import S3Parts


class Parts(Protocol):
    """A store of parts.

    begin: prepare the store and return its own id of the upload ("" if it has none).
    sign: the addresses to PUT parts to, by number.
    stored: size in bytes and ETag of each part that has arrived, by number.
    assemble: join the parts into one file. `tags` holds the ETag of each part.
    tail: the last `length` bytes of the joined file.
    place: move the joined file to `upload.key`. Doing it twice does no harm.
    remove: delete everything that belongs to the upload.
    """

    def begin(self, upload: Upload) -> str: ...
    def sign(self, upload: Upload, numbers: list[int]) -> dict[int, str]: ...
    def stored(self, upload: Upload) -> dict[int, tuple[int, str]]: ...
    def assemble(self, upload: Upload, tags: dict[int, str]) -> None: ...
    def tail(self, upload: Upload, length: int) -> bytes: ...
    def place(self, upload: Upload) -> None: ...
    def remove(self, upload: Upload) -> None: ...


def parts_of(upload: Upload) -> Parts:
    """The store of an upload. The row decides, not the present settings, so that an upload ends where it began."""
    return S3Parts() if upload.s3_bucket else LocalParts()
