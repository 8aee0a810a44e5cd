"""Where the parts of an upload go: the bucket, or the platform's own folder."""

from __future__ import annotations

from typing import Protocol

from uploads.local import LocalParts
from uploads.models import Upload
from uploads.s3 import S3Parts


class Parts(Protocol):
    """The five steps of S3's multipart uploads, and what the platform needs besides."""

    def begin(self, upload: Upload) -> str: ...
    def sign(self, upload: Upload, numbers: list[int]) -> dict[int, str]: ...
    def stored(self, upload: Upload) -> dict[int, tuple[int, str]]: ...
    def assemble(self, upload: Upload, tags: dict[int, str]) -> None: ...
    def tail(self, upload: Upload, length: int) -> bytes: ...
    def place(self, upload: Upload) -> None: ...
    def remove(self, upload: Upload) -> None: ...


def parts_of(upload: Upload) -> Parts:
    """By what the row says, not by today's settings: an upload ends where it began."""
    return S3Parts() if upload.s3_bucket else LocalParts()
