"""A download reaches the client piece by piece, in the part that it asked for, or from the bucket itself."""

from __future__ import annotations

import asyncio
import io
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from django.test import RequestFactory

from medseg_site.shared.base.errors import MedSegError
from medseg_site.shared.storage import objects as storage
from medseg_site.shared.web.downloads import StreamedFileResponse, object_response, part_response

DATA = bytes(range(256)) * 40
KEY = "models/x/model.zip"
SHA = "f" * 64


class Source(io.BytesIO):
    largest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.largest = max(self.largest, len(data))
        return data


@pytest.mark.filterwarnings("error")
def test_a_file_is_never_read_whole_under_asgi() -> None:
    data = bytes(range(256)) * 8192
    source = Source(data)

    async def collect() -> list[bytes]:
        return [part async for part in StreamedFileResponse(source)]

    parts = asyncio.run(collect())
    assert b"".join(parts) == data
    assert len(parts) == 8
    assert source.largest == StreamedFileResponse.block_size


def ask(headers: dict[str, str] | None = None, *, download: bool = True) -> Any:
    return object_response(
        RequestFactory().get("/", headers=headers),
        KEY,
        content_type="application/zip",
        name="Zelle ä-v1.zip",
        sha256=SHA,
        download=download,
    )


def body(answer: Any) -> bytes:
    return b"".join(answer.streaming_content)


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-99", 0, 99),
        ("bytes=100-", 100, len(DATA) - 1),
        ("bytes=-50", len(DATA) - 50, len(DATA) - 1),
        ("bytes=10000-99999999", 10_000, len(DATA) - 1),
        (f"bytes=-{len(DATA) + 5}", 0, len(DATA) - 1),
    ],
)
def test_a_part_is_sent_alone(media: str, asked: str, first: int, last: int) -> None:
    storage.store_bytes(KEY, DATA)
    answer = ask({"Range": asked})
    assert answer.status_code == 206
    assert answer["Content-Range"] == f"bytes {first}-{last}/{len(DATA)}"
    assert answer["Content-Length"] == str(last - first + 1)
    assert body(answer) == DATA[first : last + 1]


def test_the_whole_is_sent_where_a_range_means_nothing(media: str) -> None:
    storage.store_bytes(KEY, DATA)
    for headers in (
        {},
        {"Range": "bytes=5-2"},
        {"Range": "lines=1-2"},
        {"Range": "bytes=0-1,5-9"},
        {"Range": "bytes=-"},
    ):
        answer = ask(headers)
        assert (answer.status_code, answer["Content-Length"], answer["Accept-Ranges"]) == (200, str(len(DATA)), "bytes")
        assert body(answer) == DATA
        assert "Zelle%20%C3%A4-v1.zip" in answer["Content-Disposition"]


def test_a_download_is_only_resumed_if_it_is_still_the_same(media: str) -> None:
    storage.store_bytes(KEY, DATA)
    assert ask()["ETag"] == f'"{SHA}"'
    assert ask({"Range": "bytes=5-", "If-Range": f'"{SHA}"'}).status_code == 206
    assert ask({"Range": "bytes=5-", "If-Range": '"another"'}).status_code == 200


@pytest.mark.parametrize("asked", [f"bytes={len(DATA)}-", "bytes=-0"])
def test_a_part_that_is_not_there_is_416(media: str, asked: str) -> None:
    storage.store_bytes(KEY, DATA)
    answer = ask({"Range": asked})
    assert (answer.status_code, answer["Content-Range"]) == (416, f"bytes */{len(DATA)}")


def test_a_file_among_others_in_one_object(media: str) -> None:
    storage.store_bytes(KEY, DATA)
    answer: Any = part_response(KEY, 300, 50, content_type="image/jpeg", name="a.jpg")
    assert (answer.status_code, answer.content, answer["Content-Type"]) == (200, DATA[300:350], "image/jpeg")


@pytest.mark.parametrize(("key", "start"), [("models/x/none", 0), (KEY, len(DATA) - 10), (KEY, len(DATA) + 10)])
def test_one_that_its_object_does_not_hold_is_missing(media: str, key: str, start: int) -> None:
    storage.store_bytes(KEY, DATA)
    with pytest.raises(MedSegError) as raised:
        part_response(key, start, 50, content_type="image/jpeg", name="a.jpg")
    assert (raised.value.code, raised.value.http_status) == ("no_object", 404)


def test_what_is_empty_or_gone(media: str) -> None:
    storage.store_bytes(KEY, b"")
    assert body(ask()) == b""
    storage.delete_object(KEY)
    with pytest.raises(MedSegError) as told:
        ask()
    assert told.value.http_status == 404


@pytest.mark.s3
def test_a_download_is_sent_to_the_bucket_by_the_address_that_browsers_use(s3_media: Any, settings: Any) -> None:
    storage.store_bytes(KEY, DATA)
    assert ask().status_code == 200, "the store's own address may be known inside of a private network only"
    settings.AWS_PUBLIC_ENDPOINT_URL = settings.AWS_ENDPOINT_URL.replace("127.0.0.1", "localhost")
    assert ask(download=False).status_code == 200, "what scripts fetch comes from the pages' own address"
    answer = ask()
    assert answer.status_code == 302
    address = urlsplit(answer["Location"])
    assert (address.hostname, address.path) == ("localhost", f"/{s3_media.name}/{KEY}")
    assert parse_qs(address.query)["X-Amz-Expires"] == ["3600"]
    session = requests.Session()
    session.trust_env = False
    got = session.get(answer["Location"], headers={"Range": "bytes=0-9"}, timeout=20)
    assert (got.status_code, got.content) == (206, DATA[:10])
    assert got.headers["Content-Type"] == "application/zip"
    assert "attachment" in got.headers["Content-Disposition"]
