"""Objects are whole or not there."""

from __future__ import annotations

import hashlib
import io
import os
import socketserver
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.core.files.base import File
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import TemporaryUploadedFile

from medseg_site.shared.base import outages
from medseg_site.shared.storage import objects as storage
from medseg_site.shared.storage import scratch


def test_store_and_fetch_by_checksum(own_media: Path) -> None:
    stored = storage.store_bytes("datasets/x/a.bin", b"hello")
    assert stored.sha256 == hashlib.sha256(b"hello").hexdigest()
    assert storage.fetch(stored.key, stored.sha256).read_bytes() == b"hello"
    storage.store_bytes(stored.key, b"again")
    assert storage.fetch(stored.key).read_bytes() == b"again"


def test_a_file_whose_checksum_is_known_is_not_hashed_again(
    own_media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"hello")
    hashed = storage.store_file("datasets/x/a.bin", path)
    monkeypatch.setattr(storage, "sha256_of", lambda source: pytest.fail("it was read once more"))
    known = storage.store_file("datasets/x/a.bin", path, sha256=hashed.sha256)
    assert known == hashed == storage.StoredObject("datasets/x/a.bin", 5, hashlib.sha256(b"hello").hexdigest())
    assert storage.fetch(known.key, known.sha256).read_bytes() == b"hello"


def test_an_upload_on_disk_is_moved_not_copied(own_media: Path) -> None:
    upload = TemporaryUploadedFile("a.zip", "application/zip", 5, None)
    upload.write(b"12345")
    upload.seek(0)
    before = Path(upload.temporary_file_path()).stat().st_ino
    stored = storage.store_upload("datasets/x/archive.zip", upload)
    assert stored.size == 5
    assert Path(default_storage.path(stored.key)).stat().st_ino == before
    upload.close()


def test_a_broken_save_leaves_nothing(own_media: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, *args: Any) -> bytes:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        default_storage.save("datasets/x/a.bin", File(Broken(b"12345"), name="a.bin"))
    assert [path for path in own_media.rglob("*") if path.is_file()] == []


def test_delete_prefix_removes_that_owner_only(own_media: Path) -> None:
    one, two = uuid.uuid4(), uuid.uuid4()
    for owner in (one, two):
        storage.store_bytes(storage.object_key("models", owner, "model.zip"), b"x")
    storage.delete_prefix(storage.object_key("models", one))
    assert [path.parent.name for path in own_media.rglob("model.zip")] == [str(two)]


def test_what_a_killed_process_left_is_swept_and_the_rest_stays(settings: Any, tmp_path: Path) -> None:
    settings.TMP_DIR = tmp_path / "tmp"
    old, new = settings.TMP_DIR / "dataset-1-old", settings.TMP_DIR / "dataset-2-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "image.png").write_bytes(b"x")
    os.utime(old, (0, 0))
    scratch.sweep_scratch()
    assert list(settings.TMP_DIR.iterdir()) == [new]


def test_fetch_of_nothing_is_file_not_found(own_media: Path) -> None:
    with pytest.raises(FileNotFoundError):
        storage.fetch("datasets/none")


ANSWER = b'HTTP/1.1 200 OK\r\nETag: "abc"\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\n' + b"x" * 1000


@pytest.mark.s3
@pytest.mark.parametrize("cut", [ANSWER.index(b"Content-Type"), ANSWER.index(b"xxx") + 500])
def test_an_answer_that_is_cut_is_an_outage_and_no_object(s3_media: Any, settings: Any, cut: int) -> None:
    """Within its head, which Python takes for a whole one, or within its body."""

    class Cut(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(ANSWER[:cut])

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Cut) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = {**settings.STORAGES["default"]["OPTIONS"]}
        options["endpoint_url"] = f"http://127.0.0.1:{server.server_address[1]}"
        default = {**settings.STORAGES["default"], "OPTIONS": options}
        settings.STORAGES = {**settings.STORAGES, "default": default}
        try:
            with pytest.raises(Exception) as caught:  # noqa: PT011 (which of them, outages knows)
                storage.fetch("batches/x/archive.zip")
            assert outages.reason_of(caught.value) == "The object storage does not answer."
            with pytest.raises(Exception) as caught:  # noqa: PT011 (the same)
                storage.fetch("datasets/x/archive.zip", "0" * 64)
            assert outages.reason_of(caught.value) == "The object storage does not answer."
        finally:
            server.shutdown()
