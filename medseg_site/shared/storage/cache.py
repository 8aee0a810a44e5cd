"""What a machine keeps of storage to be quick: copies of remote objects, and decoded samples. Both may vanish at any time.

Both are bounded by bytes; what was not used for longest goes first. Several processes share them without talking to one
another: files appear whole (a rename), and what is in use is told by the file system (a second link, a lock), which also
knows when the user of it was killed.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from django.conf import settings

log = logging.getLogger(__name__)

GRACE_SECONDS = 60  # a path that was just handed out stays; who needs it for longer links it
SHARE_BETWEEN_TRIMS = 64  # of the limit: how much a process adds before it looks at the whole cache again
DAY = 24 * 3600

_added_bytes: float = float("inf")  # since the last look at the cache; a new process looks at once


# --- Copies of remote objects ---------------------------------------------------------------------------------------------
def objects_folder() -> Path:
    return Path(settings.CACHE_DIR) / "objects"


def copy_of(name: str, download: Callable[[Path], None]) -> Path:
    """The file called `name` (which says what is in it: it starts with a checksum), downloaded where it is not there yet."""
    path = objects_folder() / name[:2] / name
    with suppress(FileNotFoundError):
        os.utime(path)  # used now
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        download(part)
        size = part.stat().st_size
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    _note_added(size)
    return path


def link(path: Path, target: Path) -> None:
    """Make `target` another name of a cached file, so that it stays however the cache is trimmed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except FileExistsError:
        pass
    except FileNotFoundError:
        raise
    except OSError:  # the folders are on two disks, or the disk knows no links
        part = target.with_name(f".{uuid.uuid4().hex}.part")
        shutil.copyfile(path, part)
        os.replace(part, target)


def forget(checksums: Iterable[str]) -> None:
    """Remove this machine's copies of deleted objects, however many: each folder is read once."""
    wanted = set(checksums)
    for folder in {checksum[:2] for checksum in wanted}:
        for path in (objects_folder() / folder).glob("*"):
            if path.name[:64] in wanted:
                path.unlink(missing_ok=True)


def _note_added(size: int) -> None:
    global _added_bytes
    _added_bytes += size
    if _added_bytes > settings.MEDSEG_OBJECT_CACHE_BYTES / SHARE_BETWEEN_TRIMS:
        trim_objects()
        _added_bytes = 0


def trim_objects() -> None:
    """Keep the copies below MEDSEG_OBJECT_CACHE_MB. What a job has linked stays: removing it here would free nothing."""
    with _alone(objects_folder() / ".trim") as alone:
        if not alone:
            return
        now, files = time.time(), []
        for path in objects_folder().glob("*/*"):
            with suppress(FileNotFoundError):
                stat = path.stat()
                if path.name.endswith(".part"):
                    if now - stat.st_mtime > DAY:  # of a killed process
                        path.unlink()
                    continue
                files.append((stat.st_mtime, stat.st_size, stat.st_nlink, path))
        excess = sum(size for _, size, _, _ in files) - settings.MEDSEG_OBJECT_CACHE_BYTES
        for used, size, links, path in sorted(files):
            if excess <= 0 or now - used < GRACE_SECONDS:
                break
            if links == 1:
                path.unlink(missing_ok=True)
                excess -= size


# --- Decoded samples --------------------------------------------------------------------------------------------------------
def decoded_folder(owner: uuid.UUID) -> Path:
    """Where the decoded samples of a dataset are kept on this machine for trainings to read."""
    return Path(settings.CACHE_DIR) / "decoded" / str(owner)


@contextmanager
def decoded_in_use(owner: uuid.UUID) -> Iterator[Path]:
    """The folder of decoded samples, which nobody trims meanwhile; at the end this one looks whether all are too large."""
    folder = decoded_folder(owner)
    lock = _lock_file(folder)
    lock.parent.mkdir(parents=True, exist_ok=True)
    trim_decoded(keep=folder)
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_SH)  # let go by the system when this process ends, however it does
        os.utime(lock)
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        finally:
            os.utime(lock)
    trim_decoded(keep=folder)


def trim_decoded(keep: Path | None = None) -> None:
    """Keep all decoded samples below MEDSEG_DECODED_CACHE_MB, a dataset at a time, never one in use; `keep` goes last."""
    found = []
    root = Path(settings.CACHE_DIR) / "decoded"
    for folder in (path for path in root.glob("*") if path.is_dir()):
        size = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
        lock = _lock_file(folder)
        used = lock.stat().st_mtime if lock.exists() else folder.stat().st_mtime
        found.append((folder == keep, used, size, folder))
    excess = sum(size for _, _, size, _ in found) - settings.MEDSEG_DECODED_CACHE_BYTES
    for _, _, size, folder in sorted(found):
        if excess <= 0:
            break
        with _alone(_lock_file(folder)) as alone:
            if alone:
                log.info("the decoded samples in %s give way to newer ones", folder.name)
                shutil.rmtree(folder, ignore_errors=True)
                excess -= size


def forget_decoded(owner: uuid.UUID) -> None:
    shutil.rmtree(decoded_folder(owner), ignore_errors=True)
    _lock_file(decoded_folder(owner)).unlink(missing_ok=True)


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


@contextmanager
def _alone(lock: Path) -> Iterator[bool]:
    """Whether nobody else holds the lock; if so, it is held inside."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
