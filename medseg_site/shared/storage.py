"""Objects: their keys, how they are stored whole or not at all, and the local cache of those that live elsewhere.

User file names never become part of a key; they live in columns and manifests.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.core.files import File
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage, default_storage, storages

CHUNK = 2**20


class StorageCorruptError(Exception):
    """An object is not the one that was stored."""


class AtomicFileSystemStorage(FileSystemStorage):
    """A local folder in which an object is either whole or not there. Saving to an existing key replaces it."""

    def get_available_name(self, name: str, max_length: int | None = None) -> str:
        return name

    def _save(self, name: str, content: File[Any]) -> str:
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        try:
            if hasattr(content, "temporary_file_path"):
                shutil.move(content.temporary_file_path(), part)  # an upload on disk: a rename, not a second copy
            else:
                with part.open("wb") as out:
                    for chunk in content.chunks(CHUNK):
                        out.write(chunk)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        return name


@dataclass(frozen=True)
class StoredObject:
    key: str
    size: int
    sha256: str


def is_remote() -> bool:
    return not isinstance(storages["default"], FileSystemStorage)


def bucket_name() -> str:
    """The bucket new objects go to; empty for the local folder."""
    return settings.S3_BUCKET_NAME


def object_key(collection: str, owner: uuid.UUID, *parts: str) -> str:
    """`datasets/<uuid>/archive.zip`: the only place where keys are made. `collection`: datasets, models, inferences, batches."""
    return "/".join([collection, str(owner), *parts])


def sha256_of(source: IO[bytes]) -> tuple[str, int]:
    """Checksum (hex) and size in bytes of an open file, read in chunks from its start; leaves it at its start."""
    digest, size = hashlib.sha256(), 0
    source.seek(0)
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
    source.seek(0)
    return digest.hexdigest(), size


def is_zip(upload: File[Any]) -> bool:
    try:
        return upload.file is not None and zipfile.is_zipfile(upload.file)
    except zipfile.BadZipFile:  # an end record that speaks of several disks
        return False


def store_upload(key: str, upload: File[Any]) -> StoredObject:
    """Store an uploaded file without holding it in memory."""
    assert upload.file is not None
    sha256, size = sha256_of(upload.file)
    default_storage.save(key, upload)
    return StoredObject(key, size, sha256)


def store_file(key: str, path: Path) -> StoredObject:
    with path.open("rb") as source:
        sha256, size = sha256_of(source)
        default_storage.save(key, File(source, name=path.name))
    return StoredObject(key, size, sha256)


def store_bytes(key: str, data: bytes) -> StoredObject:
    default_storage.save(key, ContentFile(data))
    return StoredObject(key, len(data), hashlib.sha256(data).hexdigest())


def store_json(key: str, document: dict[str, Any]) -> StoredObject:
    return store_bytes(key, json.dumps(document, indent=1, default=str).encode())


def open_object(key: str) -> IO[bytes]:
    file: IO[bytes] = default_storage.open(key, "rb")
    return file


def delete_prefix(prefix: str) -> None:
    """Remove every object below a key prefix, and what the local cache holds of it."""
    shutil.rmtree(_cache_path(prefix), ignore_errors=True)
    if not is_remote():
        shutil.rmtree(default_storage.path(prefix), ignore_errors=True)
    else:
        default_storage.bucket.objects.filter(Prefix=prefix.rstrip("/") + "/").delete()  # type: ignore[attr-defined]


def keys_below(prefix: str) -> Iterator[str]:
    folders, files = default_storage.listdir(prefix)
    for name in files:
        yield f"{prefix.rstrip('/')}/{name}"
    for name in folders:
        yield from keys_below(f"{prefix.rstrip('/')}/{name}")


def _cache_path(key: str) -> Path:
    return Path(settings.CACHE_DIR) / "objects" / key


def fetch(key: str, sha256: str | None = None) -> Path:
    """A local file with the object's bytes: the file itself in a local folder, else downloaded once into the cache.

    Raises FileNotFoundError when there is no such object, StorageCorruptError when its checksum is not `sha256`.
    """
    if not is_remote():
        path = Path(default_storage.path(key))
        if not path.is_file():
            raise FileNotFoundError(key)
        return path
    path = _cache_path(key)
    if path.is_file():
        os.utime(path)  # the cache throws out what was not used for longest
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    digest = hashlib.sha256()
    try:
        with open_object(key) as source, part.open("wb") as out:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                out.write(chunk)
        if sha256 and digest.hexdigest() != sha256:
            raise StorageCorruptError(f"The object {key} is damaged: its checksum is not the one that was recorded.")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def training_folder(owner: uuid.UUID) -> Path:
    """Where a training keeps its checkpoints on this machine until it has completed."""
    return Path(settings.DATA_DIR) / "trainings" / str(owner)


def decoded_folder(owner: uuid.UUID) -> Path:
    """Where the decoded samples of a dataset are kept on this machine for trainings to read."""
    return Path(settings.CACHE_DIR) / "decoded" / str(owner)


def forget_local(owner: uuid.UUID) -> None:
    """Remove what this machine keeps of a dataset or model beside its objects."""
    for folder in (training_folder(owner), decoded_folder(owner)):
        shutil.rmtree(folder, ignore_errors=True)


def trim_cache() -> None:
    """Keep the cache of remote objects below MEDSEG_OBJECT_CACHE_MB, oldest use first."""
    files = [(path.stat(), path) for path in _cache_path("").rglob("*") if path.is_file()]
    excess = sum(stat.st_size for stat, _ in files) - settings.MEDSEG_OBJECT_CACHE_BYTES
    for stat, path in sorted(files, key=lambda item: item[0].st_mtime):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= stat.st_size


def sweep_scratch(older_than_seconds: float = 24 * 3600) -> None:
    """Remove temporary files that a killed process left behind; no job and no upload leaves one untouched for a day."""
    for path in Path(settings.TMP_DIR).iterdir():
        if time.time() - path.stat().st_mtime > older_than_seconds:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """A folder for one job's temporary files, on the data folder's disk (/tmp may live in memory)."""
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=settings.TMP_DIR) as folder:
        yield Path(folder)
