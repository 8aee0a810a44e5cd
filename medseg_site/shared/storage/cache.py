"""Two caches on this machine's disk: copies of remote objects, and decoded samples. Both may vanish at any time.

Each is bounded by bytes, and the least recently used files go first. Several processes share a cache without a server: a
file appears whole, by a rename. A second link or a lock says that a file is in use, so the system lets go of it when its
user is killed.
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

# A path that was just handed out stays that long. A caller that needs the file for longer links it.
GRACE_SECONDS = 60
# A process looks at the whole cache again after it has added this part (1/64) of the limit.
TRIMS_PER_LIMIT = 64
DAY = 24 * 3600

# Since the last look at the cache. A new process looks at once.
_added_bytes: float = float("inf")


# --- Copies of remote objects ---------------------------------------------------------------------------------------------
def objects_folder() -> Path:
    return Path(settings.CACHE_DIR) / "objects"


def copy_of(name: str, download: Callable[[Path], None]) -> Path:
    """The file `name`, downloaded unless it is there. The name begins with a checksum, so it stands for the content."""
    path = objects_folder() / name[:2] / name
    with suppress(FileNotFoundError):
        # The time of change is the time of the last use.
        os.utime(path)
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
    """Make `target` a second name of a cached file. The file then stays until `target` is removed, too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except FileExistsError:
        pass
    except FileNotFoundError:
        raise
    except OSError:
        # The folders are on two disks, or the file system has no links.
        part = target.with_name(f".{uuid.uuid4().hex}.part")
        shutil.copyfile(path, part)
        os.replace(part, target)


def forget(checksums: Iterable[str]) -> None:
    """Remove this machine's copies of deleted objects. Each folder is read once, however many there are."""
    wanted = set(checksums)
    for folder in {checksum[:2] for checksum in wanted}:
        for path in (objects_folder() / folder).glob("*"):
            if path.name[:64] in wanted:
                path.unlink(missing_ok=True)


def _note_added(size: int) -> None:
    global _added_bytes
    _added_bytes += size
    if _added_bytes > settings.MEDSEG_OBJECT_CACHE_BYTES / TRIMS_PER_LIMIT:
        trim_objects()
        _added_bytes = 0


def trim_objects() -> None:
    """Keep the copies below MEDSEG_OBJECT_CACHE_MB. A file that a job has linked stays: removing it here would free nothing."""
    with _alone(objects_folder() / ".trim") as alone:
        if not alone:
            return
        now, files = time.time(), []
        for path in objects_folder().glob("*/*"):
            with suppress(FileNotFoundError):
                stat = path.stat()
                if path.name.endswith(".part"):
                    # A killed process left it.
                    if now - stat.st_mtime > DAY:
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
    """The folder of a dataset's decoded samples on this machine. Trainings read them."""
    return Path(settings.CACHE_DIR) / "decoded" / str(owner)


@contextmanager
def decoded_in_use(owner: uuid.UUID) -> Iterator[Path]:
    """The folder of decoded samples, locked against trimming. Before and after, the whole cache is trimmed to its limit."""
    folder = decoded_folder(owner)
    lock = _lock_file(folder)
    lock.parent.mkdir(parents=True, exist_ok=True)
    trim_decoded(keep=folder)
    with lock.open("a") as held:
        # The system releases the lock when this process ends, also when it is killed.
        fcntl.flock(held, fcntl.LOCK_SH)
        os.utime(lock)
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        finally:
            os.utime(lock)
    trim_decoded(keep=folder)


def trim_decoded(keep: Path | None = None) -> None:
    """Keep the decoded samples below MEDSEG_DECODED_CACHE_MB. A dataset in use is never removed, and `keep` goes last."""
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
                log.info("the decoded samples in %s are removed to make room", folder.name)
                shutil.rmtree(folder, ignore_errors=True)
                excess -= size


def forget_decoded(owner: uuid.UUID) -> None:
    shutil.rmtree(decoded_folder(owner), ignore_errors=True)
    _lock_file(decoded_folder(owner)).unlink(missing_ok=True)


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


@contextmanager
def _alone(lock: Path) -> Iterator[bool]:
    """True, and the lock is held inside, unless another process holds it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
