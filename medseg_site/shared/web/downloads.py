"""Files to clients: from S3 by a signed address where browsers can reach it, else streamed, in parts where they are asked for."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import IO, Any

from asgiref.sync import sync_to_async
from django.http import (
    FileResponse,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseRedirect,
    StreamingHttpResponse,
)
from django.utils.http import content_disposition_header
from zipstream import ZipStream

from medseg_site.shared.base.errors import MedSegError
from medseg_site.shared.storage import objects as storage
from medseg_site.shared.storage import remote

SENT_AT_ONCE = 2**18  # bytes
KEPT_BY_BROWSERS = "private, max-age=3600"
RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class _PieceByPiece(StreamingHttpResponse):
    """A response that is sent piece by piece under ASGI, too, where Django would read a plain iterator into memory first."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = iter(self)

        def read() -> bytes | None:
            return next(parts, None)

        while (part := await sync_to_async(read)()) is not None:
            yield part


class StreamedFileResponse(_PieceByPiece, FileResponse):
    block_size = SENT_AT_ONCE


ZipEntry = tuple[str, Iterable[bytes]]  # name in the archive, its bytes


def zip_response(entries: Iterable[ZipEntry], *, name: str) -> HttpResponseBase:
    """A ZIP that is made while it is sent: nothing is kept, and the first bytes go out at once. It has no length.

    An error on the way ends the connection, so every client sees a failed download.
    """
    response = _PieceByPiece(_zipped(entries), content_type="application/zip")
    response["Content-Disposition"] = content_disposition_header(True, name)
    response["Cache-Control"] = "private, no-store"
    return response


def _zipped(entries: Iterable[ZipEntry]) -> Iterator[bytes]:
    archive = ZipStream()

    def pieces() -> Iterator[bytes]:
        for name, content in entries:
            archive.add(content, name)
            yield from archive.file()
        yield from archive.finalize()

    # Small pieces are joined, since each is passed from a thread to the event loop.
    waiting = bytearray()
    for piece in pieces():
        waiting += piece
        if len(waiting) >= SENT_AT_ONCE:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)


def pieces_of(key: str) -> Iterator[bytes]:
    """The bytes of an object. It is opened when the first piece is asked for."""
    with storage.open_stream(key) as source:
        while piece := source.read(storage.CHUNK):
            yield piece


def object_response(
    request: HttpRequest, key: str, *, content_type: str, name: str, sha256: str = "", download: bool = False
) -> HttpResponseBase:
    """A stored object as a stream, or the part of it that a Range names. A download may be redirected to S3 itself.

    Only downloads are redirected: what scripts fetch has to come from the address of the pages.
    """
    try:
        size = storage.size_of(key)
        if size is None:
            raise FileNotFoundError(key)
        address = (
            remote.signed_url(key, name=name, content_type=content_type) if download and storage.is_remote() else None
        )
        if address:
            return HttpResponseRedirect(address, headers={"Cache-Control": "private, no-store"})
        return _streamed(request, key, size, content_type=content_type, name=name, sha256=sha256, download=download)
    except OSError:
        raise _gone() from None


def part_response(key: str, start: int, size: int, *, content_type: str, name: str) -> HttpResponseBase:
    """A small file inside a larger object: `size` bytes from `start`."""
    try:
        with storage.open_range(key, start, start + size) as source:
            content = source.read()
    except OSError:
        raise _gone() from None
    if len(content) != size:
        raise _gone()
    response: Any = HttpResponse(content, content_type=content_type)
    response["Cache-Control"] = KEPT_BY_BROWSERS
    response["Content-Disposition"] = content_disposition_header(False, name)
    answer: HttpResponseBase = response
    return answer


def _gone() -> MedSegError:
    return MedSegError("no_object", "The file is not in storage any more.", http_status=404)


def _streamed(
    request: HttpRequest, key: str, size: int, *, content_type: str, name: str, sha256: str, download: bool
) -> HttpResponseBase:
    tag = f'"{sha256}"' if sha256 else None
    asked = _asked_range(request, size, tag)
    if asked is not None and asked[0] > asked[1]:
        return HttpResponse(status=416, headers={"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"})
    first, last = asked or (0, size - 1)
    source: IO[bytes] = storage.open_range(key, first, last + 1) if size else storage.open_object(key)
    response: Any = StreamedFileResponse(source, status=206 if asked else 200, content_type=content_type)
    response["Content-Length"] = str(last - first + 1)
    response["Accept-Ranges"] = "bytes"
    response["Cache-Control"] = KEPT_BY_BROWSERS
    response["Content-Disposition"] = content_disposition_header(download, name)
    if asked:
        response["Content-Range"] = f"bytes {first}-{last}/{size}"
    if tag:
        response["ETag"] = tag
    answer: HttpResponseBase = response
    return answer


def _asked_range(request: HttpRequest, size: int, tag: str | None) -> tuple[int, int] | None:
    """(first, last) byte of the range that is asked for; first > last if the object has no such bytes. None: send all of it.

    Several ranges, other units and nonsense are answered with the whole object, as RFC 9110 allows.
    """
    found = RANGE.fullmatch(request.headers.get("Range", "").replace(" ", ""))
    condition = request.headers.get("If-Range")
    if request.method != "GET" or not found or (condition is not None and condition != tag):
        return None
    first, last = found.groups()
    if not first and not last:
        return None
    # `bytes=-500` names the last 500 bytes.
    if not first:
        return (max(0, size - int(last)), size - 1) if int(last) else (1, 0)
    if last and int(last) < int(first):
        return None
    end = min(int(last), size - 1) if last else size - 1
    return (int(first), end) if int(first) < size else (1, 0)
