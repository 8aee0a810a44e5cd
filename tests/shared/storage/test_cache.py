"""The caches of a machine: bounded, shared by processes, and never in the way of a job that uses them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from medseg_site.shared.storage import cache
from medseg_site.shared.storage import objects as storage
from tests.environment import REPOSITORY

MB = 2**20


@pytest.fixture
def small(settings: Any, tmp_path: Path) -> Path:
    """Caches that hold ten and thirty megabytes."""
    settings.CACHE_DIR = tmp_path / "cache"
    settings.MEDSEG_OBJECT_CACHE_BYTES, settings.MEDSEG_DECODED_CACHE_BYTES = 10 * MB, 30 * MB
    return tmp_path / "cache"


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def add(name: str, megabytes: int = 1, used_ago: float = 0) -> Path:
    def download(part: Path) -> None:
        part.write_bytes(name.encode()[:1] * megabytes * MB)

    path = cache.copy_of(f"{name}-file", download)
    os.utime(path, (time.time() - used_ago,) * 2)
    return path


def test_the_longest_unused_go_and_a_linked_file_stays(small: Path, tmp_path: Path) -> None:
    oldest = add("aa", used_ago=900)
    held = tmp_path / "job" / "image.png"
    cache.link(oldest, held)
    second, third = add("bb", used_ago=800), add("cc", used_ago=700)
    add("dd", 8, used_ago=600)
    add("ee")
    assert (second.exists(), third.exists(), held.exists(), oldest.exists()) == (False, False, True, True)
    assert size_of(small / "objects") == 10 * MB
    held.unlink()
    add("ff")
    assert not oldest.exists(), "nobody holds it any more"


def test_what_was_just_handed_out_stays_and_use_counts(small: Path) -> None:
    paths = [add(f"{index:02d}") for index in range(12)]
    assert all(path.exists() for path in paths), "a path is good for a minute, also in a cache that is too small"
    for path in paths:
        os.utime(path, (time.time() - 500 + int(path.name[:2]),) * 2)
    cache.copy_of("00-file", lambda part: pytest.fail("it is there"))
    cache.trim_objects()
    assert [path.name[:2] for path in paths if path.exists()] == ["00", *(f"{index:02d}" for index in range(3, 12))]


def test_a_broken_download_leaves_nothing_and_parts_of_the_dead_are_removed(small: Path) -> None:
    def broken(part: Path) -> None:
        part.write_bytes(b"half")
        raise OSError("the connection is gone")

    with pytest.raises(OSError, match="the connection is gone"):
        cache.copy_of("ab-file", broken)
    assert size_of(small / "objects" / "ab") == 0
    left, fresh = small / "objects" / "ab" / ".1.part", small / "objects" / "ab" / ".2.part"
    for path in (left, fresh):
        path.write_bytes(b"x")
    os.utime(left, (time.time() - 2 * cache.DAY,) * 2)
    cache.trim_objects()
    assert (left.exists(), fresh.exists()) == (False, True)


@pytest.mark.slow
def test_many_processes_share_it(small: Path) -> None:
    """Six processes fill the same small cache with overlapping names and read what they get, all at once."""
    program = f"""
import django, sys, random
django.setup()
from django.conf import settings
from pathlib import Path
settings.CACHE_DIR = Path({str(small)!r}); settings.MEDSEG_OBJECT_CACHE_BYTES = 10 * 2**20
from medseg_site.shared.storage import cache
cache.GRACE_SECONDS = 1
chance = random.Random(int(sys.argv[1]))
for _ in range(120):
    number = chance.randrange(40)
    path = cache.copy_of(f"{{number:02d}}-file", lambda part: part.write_bytes(bytes([number]) * 2**19) and None)
    data = path.read_bytes()
    assert data == bytes([number]) * 2**19, "half a file"
cache.trim_objects()
"""
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "medseg_site.settings"}
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(seed)], cwd=REPOSITORY, env=environment)
        for seed in range(6)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0] * 6
    assert list((small / "objects").rglob("*.part")) == []
    for path in (small / "objects").glob("*/*"):
        os.utime(path, (time.time() - 500,) * 2)
    cache.trim_objects()
    assert size_of(small / "objects") <= 10 * MB


def test_decoded_samples_are_bounded_but_never_those_in_use(small: Path) -> None:
    one, two, three = (uuid.uuid4() for _ in range(3))
    for number, owner in enumerate((one, two)):
        with cache.decoded_in_use(owner) as folder:
            (folder / "a.images.npy").write_bytes(bytes(20 * MB))
        os.utime(folder.with_name(f"{folder.name}.lock"), (1000 + number,) * 2)
        assert not (number == 1 and cache.decoded_folder(one).exists()), "the one unused for longer gives way"
    with cache.decoded_in_use(two) as used, cache.decoded_in_use(three) as folder:
        (folder / "b.images.npy").write_bytes(bytes(20 * MB))
        cache.trim_decoded()
        assert (used / "a.images.npy").exists()
        assert (folder / "b.images.npy").exists(), "both are in use, so both stay although they are too large"
    assert size_of(small / "decoded") == 20 * MB, "one of them, as soon as they were not in use"
    for owner in (one, two, three):
        cache.forget_decoded(owner)
    assert list((small / "decoded").iterdir()) == []


@pytest.mark.slow
def test_a_killed_process_holds_nothing(small: Path) -> None:
    owner = uuid.uuid4()
    program = f"""
import django, time, uuid
django.setup()
from django.conf import settings
from pathlib import Path
settings.CACHE_DIR = Path({str(small)!r})
from medseg_site.shared.storage import cache
with cache.decoded_in_use(uuid.UUID({str(owner)!r})) as folder:
    (folder / "a.images.npy").write_bytes(bytes(40 * 2**20))
    print("holds it", flush=True)
    time.sleep(600)
"""
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "medseg_site.settings"}
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "holds it\n"
        cache.trim_decoded()
        assert cache.decoded_folder(owner).exists()
    finally:
        process.kill()
        process.wait()
    cache.trim_decoded()
    assert not cache.decoded_folder(owner).exists()


@pytest.mark.s3
def test_remote_objects_are_kept_by_their_content(s3_media: Any, small: Path, tmp_path: Path) -> None:
    one = storage.store_bytes("datasets/x/samples/000000/image.nii.gz", b"voxels")
    two = storage.store_bytes("datasets/y/samples/000007/image.nii.gz", b"voxels")
    path = storage.fetch(one.key, one.sha256)
    assert path.name.endswith("image.nii.gz"), "readers go by the ending"
    assert storage.fetch(two.key, two.sha256) == path, "the same bytes are kept once"
    inside = storage.fetch_into(tmp_path / "job", one.key, one.sha256)
    assert inside.stat().st_ino == path.stat().st_ino
    neighbour = path.with_name(f"{one.sha256[:2]}{'0' * 62}-image.png")  # in the same folder, of another object
    neighbour.touch()
    storage.forget_copies([one.sha256, "1" * 64])
    assert (path.exists(), neighbour.exists()) == (False, True)
    assert inside.read_bytes() == b"voxels"
    assert storage.fetch_into(tmp_path / "job", one.key, one.sha256) == inside

    # Without a checksum what lies there now is fetched, not what did.
    assert storage.fetch(one.key).read_bytes() == b"voxels"
    storage.store_bytes(one.key, b"others")
    assert storage.fetch(one.key).read_bytes() == b"others"
    with pytest.raises(storage.StorageCorruptError):
        storage.fetch(one.key, hashlib.sha256(b"voxels").hexdigest())
    with pytest.raises(FileNotFoundError):
        storage.fetch("datasets/x/none.png", "0" * 64)
    with pytest.raises(FileNotFoundError):
        storage.fetch_into(tmp_path / "job", "datasets/x/none.png", "0" * 64)
