"""The local folder as Django's storage."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from django.core.files import File
from django.core.files.storage import FileSystemStorage

CHUNK = 2**20


class AtomicFileSystemStorage(FileSystemStorage):
    """A local folder in which an object is either whole or not there. Saving under an existing key replaces the object."""

    def get_available_name(self, name: str, max_length: int | None = None) -> str:
        return name

    def _save(self, name: str, content: File[Any]) -> str:
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        try:
            if hasattr(content, "temporary_file_path"):
                # The upload is on the disk already: this is a rename, not a second copy.
                shutil.move(content.temporary_file_path(), part)
            else:
                with part.open("wb") as out:
                    for chunk in content.chunks(CHUNK):
                        out.write(chunk)
            if _is_synced(name):
                # Else a row could say that the object is whole after the machine lost its power.
                with part.open("rb") as written:
                    os.fsync(written)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        return name


def _is_synced(name: str) -> bool:
    """Whether the disk is waited for. Not for samples, for which `settle` waits all at once, nor for manifests of inferences,
    which can be written again.
    """
    return "/samples/" not in name and not (name.startswith("inferences/") and name.endswith(".json"))
