"""Objects in storage: their keys, and how they are stored, read, listed and removed, in a local folder or in a bucket.

The names of users' files never become part of a key. They are kept in columns and manifests.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
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
# A walk over all objects holds so many in memory.
OWNERS_AT_ONCE, OBJECTS_AT_ONCE = 200, 20_000


class StorageCorruptError(Exception):
    """An object is not the one that was stored."""


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
    """A key such as `datasets/<uuid>/archive.zip`. Keys are made here only. `collection`: datasets, models, inferences, batches."""
    return "/".join([collection, str(owner), *parts])


def sha256_of(source: IO[bytes]) -> tuple[str, int]:
    """SHA-256 (hex) and size in bytes of an open file. It is read in chunks from its start, and left at its start."""
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
    except zipfile.BadZipFile:
        # Its end record names several disks.
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
    """Wait until everything that was stored in the local folder is on the disk. Call it before a row says that it is there."""
    if not is_remote():
        os.sync()


def open_object(key: str) -> IO[bytes]:
    file: IO[bytes] = default_storage.open(key, "rb")
    return file


def open_stream(key: str) -> IO[bytes]:
    """The object as a stream that is read once, from start to end. Raises FileNotFoundError."""
    return remote.open_whole(key) if is_remote() else open_object(key)


def open_range(key: str, start: int, end: int) -> IO[bytes]:
    """A stream of the bytes from `start` up to, but without, `end`. Raises FileNotFoundError."""
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
    """Remove many objects, and the folders that are empty after that."""
    if is_remote():
        remote.delete_keys(keys)
        return
    for key in keys:
        delete_object(key)
        remove_emptied_folders(key)


def delete_prefix(prefix: str) -> None:
    """Remove every object below a key prefix. The manifest goes first: without it, `rebuild_catalog` restores no row from the rest."""
    prefix = prefix.rstrip("/")
    delete_object(f"{prefix}/manifest.json")
    if not is_remote():
        shutil.rmtree(default_storage.path(prefix), ignore_errors=True)
    else:
        remote.delete_below(f"{prefix}/")


def remove_emptied_folders(key: str) -> None:
    """Remove the folders of a deleted object that are empty now, up to its owner's folder."""
    while not is_remote() and key.count("/") > 1:
        key = key.rpartition("/")[0]
        # An error says that the folder is not empty.
        with suppress(OSError):
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
    """The first parts of all keys, also of those that this program did not make."""
    folders, files = default_storage.listdir("")
    return sorted({*folders, *files} - {""})


def owners_of(collection: str) -> list[str]:
    """The second parts of a collection's keys (folders only), sorted."""
    try:
        return sorted(name for name in default_storage.listdir(collection)[0] if name)
    except FileNotFoundError:
        return []


def objects_by_owner(collection: str) -> Iterator[tuple[str, list[ObjectInfo]]]:
    """(second part of the key, its objects), owner by owner, so that memory does not grow with the number of owners."""
    for owner, objects in groupby(objects_below(collection), key=lambda item: item.key.split("/")[1]):
        yield owner, list(objects)


def owners_in_chunks(collection: str) -> Iterator[dict[str, list[ObjectInfo]]]:
    """The same in chunks of some owners, fewer where each has many objects. One chunk is held in memory."""
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
    """Size in bytes; None where there is no such object."""
    try:
        return remote.size_of(key) if is_remote() else default_storage.size(key)
    except FileNotFoundError:
        return None


def _walk_local(prefix: str) -> Iterator[ObjectInfo]:
    try:
        entries = sorted(os.scandir(default_storage.path(prefix)), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        # It was deleted meanwhile.
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
    """A local file with the object's bytes: the object itself in the local folder, else a copy in this machine's cache.

    The copy stays for a minute at least. A caller that needs it for longer takes `fetch_into`.
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
    """As `fetch`, but the file stays as long as `folder` does, however full the cache becomes."""
    target = folder / f"{sha256}-{key.rpartition('/')[2]}"
    while is_remote() and not target.exists():
        try:
            cache.link(fetch(key, sha256), target)
        except FileNotFoundError:
            # Raises where the object is gone from storage. Else only the copy was trimmed a moment ago: fetch again.
            remote.tag_of(key)
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
    """Remove this machine's copies of deleted objects. Copies of other machines go when their cache is trimmed."""
    if is_remote():
        cache.forget(checksums)
