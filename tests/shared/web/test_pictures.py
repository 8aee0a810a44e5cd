"""Pictures of objects that are gone, damaged, or that this machine has no room for."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rest_framework.test import APIClient

from medseg_site.shared.storage import objects as storage
from tests.factories import SampleFactory

pytestmark = pytest.mark.django_db


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (32, 32), level).save(buffer, "PNG")
    return buffer.getvalue()


def error_of(answer: Any) -> str:
    return str(answer.json()["errors"][0]["detail"])


@pytest.fixture
def sample() -> Any:
    """With the checksum of what is to be stored at its key. Another one each time, since decoded images stay in memory."""
    data = png(os.urandom(1)[0]) + os.urandom(8)
    return SampleFactory.create(image_sha256=hashlib.sha256(data).hexdigest()), data


def url_of(sample: Any) -> str:
    return f"/api/v1/datasets/{sample.dataset_id}/samples/{sample.pk}/image/"


def test_an_object_that_is_gone_and_one_that_came_back(api: APIClient, media: str, sample: Any) -> None:
    row, data = sample
    gone = api.get(url_of(row))
    assert (gone.status_code, error_of(gone)) == (404, "The file is not in storage any more.")
    storage.store_bytes(row.image_key, data)
    assert api.get(url_of(row)).content[:4] == b"\x89PNG"


@pytest.mark.s3
def test_a_damaged_object_is_told_with_the_cure(api: APIClient, s3_media: Any, sample: Any) -> None:
    row, data = sample
    storage.store_bytes(row.image_key, data[:-1])
    answer = api.get(url_of(row))
    assert answer.status_code == 409, answer.content
    assert row.image_key in error_of(answer)
    assert "backup" in error_of(answer)


@pytest.mark.s3
def test_a_full_disk_is_not_taken_for_an_object_that_is_gone(
    s3_media: Any, sample: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, data = sample
    storage.store_bytes(row.image_key, data)

    def no_room(self: Path, *rest: Any, **options: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", no_room)  # the copy that is made of it
    answer = APIClient(raise_request_exception=False).get(url_of(row))
    assert answer.status_code == 503, answer.content
    assert "disk is full" in error_of(answer)
