"""Objects: their keys, how they are stored whole or not at all, and the local cache of those that live elsewhere.

User file names never become part of a key; they live in columns and manifests.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import time
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.core.files import File
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage, default_storage, storages

from medseg_site.shared.storage import cache, remote

CHUNK = 2**20
OWNERS_AT_ONCE, OBJECTS_AT_ONCE = 200, 20_000  # of a walk over all that there is


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
            if _is_synced(name):
                with part.open("rb") as written:
                    os.fsync(written)  # the machine may lose its power, and a row say that the object is whole
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        return name


def _is_synced(name: str) -> bool:
    """Not the thousands of samples, which `settle` waits for all at once, nor the manifests of inferences, which can be written again."""
    return "/samples/" not in name and not (name.startswith("inferences/") and name.endswith(".json"))


@dataclass(frozen=True, slots=True)
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


def store_file(key: str, path: Path, *, sha256: str = "") -> StoredObject:
    """sha256: of the bytes that the file must have, where they were hashed on their way into it; it is not read twice then."""
    with path.open("rb") as source:
        sha256 = sha256 or sha256_of(source)[0]
        size = os.fstat(source.fileno()).st_size
        default_storage.save(key, File(source, name=path.name))
    return StoredObject(key, size, sha256)


def store_bytes(key: str, data: bytes) -> StoredObject:
    default_storage.save(key, ContentFile(data))
    return StoredObject(key, len(data), hashlib.sha256(data).hexdigest())


def store_json(key: str, document: dict[str, Any]) -> StoredObject:
    return store_bytes(key, json.dumps(document, indent=1, default=str).encode())


def settle() -> None:
    """Wait until all that was stored in the local folder is on its disk, before a row says so."""
    if not is_remote():
        os.sync()


def open_object(key: str) -> IO[bytes]:
    file: IO[bytes] = default_storage.open(key, "rb")
    return file


def open_stream(key: str) -> IO[bytes]:
    """To be read once from its start to its end: from S3 as it comes. Raises FileNotFoundError."""
    return remote.open_whole(key) if is_remote() else open_object(key)


def open_range(key: str, start: int, end: int) -> IO[bytes]:
    """The bytes from `start` up to (not with) `end`, read as they are asked for. Raises FileNotFoundError."""
    if not is_remote():
        file = open_object(key)
        file.seek(start)
        part: Any = _Part(file, end - start)
        source: IO[bytes] = part
        return source
    return remote.open_range(key, start, end)


class _Part(io.RawIOBase):
    """The next `size` bytes of an open file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


def delete_object(key: str) -> None:
    """Remove one object; nothing happens where there is none."""
    default_storage.delete(key)


def delete_objects(keys: Iterable[str]) -> None:
    """Remove many, and in the local folder what is empty after it."""
    if is_remote():
        remote.delete_keys(keys)
        return
    for key in keys:
        delete_object(key)
        remove_emptied_folders(key)


def delete_prefix(prefix: str) -> None:
    """Remove every object below a key prefix, the manifest first: what a killed process leaves of it must not come back."""
    prefix = prefix.rstrip("/")
    delete_object(f"{prefix}/manifest.json")
    if not is_remote():
        shutil.rmtree(default_storage.path(prefix), ignore_errors=True)
    else:
        remote.delete_below(f"{prefix}/")


def remove_emptied_folders(key: str) -> None:
    """Those of a deleted object in the local folder, up to its owner's."""
    while not is_remote() and key.count("/") > 1:
        key = key.rpartition("/")[0]
        with suppress(OSError):  # not empty
            os.rmdir(default_storage.path(key))


def keys_below(prefix: str) -> Iterator[str]:
    folders, files = default_storage.listdir(prefix)
    for name in files:
        yield f"{prefix.rstrip('/')}/{name}"
    for name in folders:
        yield from keys_below(f"{prefix.rstrip('/')}/{name}")


@dataclass(frozen=True)
class ObjectInfo:
    key: str
    size: int
    modified: float  # seconds since 1970


def collections() -> list[str]:
    """The first parts of all keys that there are, whoever made them."""
    folders, files = default_storage.listdir("")
    return sorted({*folders, *files} - {""})


def owners_of(collection: str) -> list[str]:
    """The second parts of a collection's keys (folders only), in order."""
    try:
        return sorted(name for name in default_storage.listdir(collection)[0] if name)
    except FileNotFoundError:
        return []


def objects_by_owner(collection: str) -> Iterator[tuple[str, list[ObjectInfo]]]:
    """(second part of the key, its objects), owner by owner, so that memory does not grow with their number."""
    for owner, objects in groupby(objects_below(collection), key=lambda item: item.key.split("/")[1]):
        yield owner, list(objects)


def owners_in_chunks(collection: str) -> Iterator[dict[str, list[ObjectInfo]]]:
    """The same some owners at a time, fewer where each has many objects: a chunk is what is held in memory."""
    some: dict[str, list[ObjectInfo]] = {}
    count = 0
    for owner, objects in objects_by_owner(collection):
        some[owner] = objects
        count += len(objects)
        if len(some) >= OWNERS_AT_ONCE or count >= OBJECTS_AT_ONCE:
            yield some
            some, count = {}, 0
    if some:
        yield some


def objects_below(prefix: str) -> Iterator[ObjectInfo]:
    if not is_remote():
        return _walk_local(prefix)
    return (ObjectInfo(item.key, item.size, item.last_modified.timestamp()) for item in remote.below(f"{prefix}/"))


def size_of(key: str) -> int | None:
    """In bytes; None where there is no such object."""
    try:
        return remote.size_of(key) if is_remote() else default_storage.size(key)
    except FileNotFoundError:
        return None


def _walk_local(prefix: str) -> Iterator[ObjectInfo]:
    try:
        entries = sorted(os.scandir(default_storage.path(prefix)), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):  # deleted meanwhile
        return
    for entry in entries:
        key = f"{prefix}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield from _walk_local(key)
        else:
            try:
                stat = entry.stat()
            except FileNotFoundError:
                continue
            yield ObjectInfo(key, stat.st_size, stat.st_mtime)


def fetch(key: str, sha256: str | None = None) -> Path:
    """A local file with the object's bytes: the file itself in a local folder, else a copy in the cache, named by its content.

    The copy stays at least a minute; who needs it for longer takes `fetch_into`.
    Raises FileNotFoundError when there is no such object, StorageCorruptError when its checksum is not `sha256`.
    """
    if not is_remote():
        path = Path(default_storage.path(key))
        if not path.is_file():
            raise FileNotFoundError(key)
        return path
    if sha256:
        return cache.copy_of(f"{sha256}-{key.rpartition('/')[2]}", partial(_download, key, sha256, None))
    tag = remote.tag_of(key)
    name = hashlib.sha256(f"{key} {tag}".encode()).hexdigest()
    return cache.copy_of(f"{name}-{key.rpartition('/')[2]}", partial(_download, key, None, tag))


def fetch_into(folder: Path, key: str, sha256: str) -> Path:
    """As `fetch`, but a file that stays while `folder` does, however full the cache becomes."""
    target = folder / f"{sha256}-{key.rpartition('/')[2]}"
    while is_remote() and not target.exists():
        try:
            cache.link(fetch(key, sha256), target)
        except FileNotFoundError:
            remote.tag_of(key)  # gone from storage: raises; else only from the cache, a moment ago
    return target if is_remote() else fetch(key, sha256)


def _download(key: str, sha256: str | None, tag: str | None, target: Path) -> None:
    digest = hashlib.sha256()
    with remote.open_whole(key, tag) as source, target.open("wb") as out:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            out.write(chunk)
    if sha256 and digest.hexdigest() != sha256:
        raise StorageCorruptError(f"The object {key} is damaged: its checksum is not the one that was recorded.")


def forget_copies(checksums: Iterable[str]) -> None:
    """Remove this machine's copies of deleted objects; those of other machines go when theirs is trimmed."""
    if is_remote():
        cache.forget(checksums)


def training_folder(owner: uuid.UUID) -> Path:
    """Where a training keeps its checkpoints on this machine until it has completed."""
    return Path(settings.DATA_DIR) / "trainings" / str(owner)


def forget_local(owner: uuid.UUID) -> None:
    """Remove what this machine keeps of a dataset or model beside its objects."""
    shutil.rmtree(training_folder(owner), ignore_errors=True)
    cache.forget_decoded(owner)


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
