"""What S3 offers beyond Django's storage interface. Only called where `storage.is_remote()`."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from typing import IO, Any

from botocore.exceptions import ClientError, IncompleteReadError
from django.conf import settings
from django.core.files.storage import default_storage, storages
from django.utils.http import content_disposition_header

SIGNED_SECONDS = 3600
BUFFER = 2**18


def _bucket() -> Any:
    return default_storage.bucket  # type: ignore[attr-defined]  # of the S3 storage


@contextmanager
def _missing_is_file_not_found(key: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] in (404, 416):  # 416: it has no such range
            raise FileNotFoundError(key) from None
        raise


def tag_of(key: str) -> str:
    """What an object's content is known by. Raises FileNotFoundError, as all here that name one object."""
    with _missing_is_file_not_found(key):
        return str(_whole(_bucket().Object(key).e_tag))


def size_of(key: str) -> int:
    with _missing_is_file_not_found(key):
        return int(_whole(_bucket().Object(key).content_length))


def open_whole(key: str, tag: str | None = None) -> IO[bytes]:
    """Read as it comes, not by way of memory or disk; with `tag` only if the object is still that one."""
    with _missing_is_file_not_found(key):
        answer = _bucket().Object(key).get(**({"IfMatch": tag} if tag else {}))
    return _body(answer)


def open_range(key: str, start: int, end: int) -> IO[bytes]:
    with _missing_is_file_not_found(key):
        answer = _bucket().Object(key).get(Range=f"bytes={start}-{end - 1}")
    return _body(answer)


def _body(answer: dict[str, Any]) -> IO[bytes]:
    """botocore holds the body against its length, which says nothing where the connection was cut within the head."""
    _whole(answer.get("ContentLength"))
    return io.BufferedReader(_Checked(answer["Body"]), BUFFER)


class _Checked(io.RawIOBase):
    """A body that is always read through botocore's check of its length: in a `with`, botocore hands out the stream below that."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._body.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._body.close()
        super().close()


def _whole(header: Any) -> Any:
    """Python takes a head that ends too early for a whole one, so a field that is always there may be missing."""
    if header is None:
        raise IncompleteReadError(actual_bytes=0, expected_bytes="an answer with its whole head")
    return header


def below(prefix: str) -> Any:
    """The objects whose keys begin so, in the order of their keys."""
    return _bucket().objects.filter(Prefix=prefix)


def delete_below(prefix: str) -> None:
    for answer in below(prefix).delete():
        _refuse_errors(answer)


def _refuse_errors(answer: dict[str, Any]) -> None:
    """S3 answers 200 also where it could not delete some of them. Raises ClientError."""
    for error in answer.get("Errors", ()):
        raise ClientError(
            {"Error": {"Code": error.get("Code", ""), "Message": error.get("Message", "")},
             "ResponseMetadata": {"HTTPStatusCode": 503}},
            "DeleteObjects",
        )  # fmt: skip


def delete_keys(keys: Iterable[str]) -> None:
    """A thousand a request, as many as S3 takes."""
    left = iter(keys)
    while some := [{"Key": key} for key in islice(left, 1000)]:
        answer = _bucket().delete_objects(Delete={"Objects": some, "Quiet": True})
        _refuse_errors(answer)


def signed_url(key: str, *, name: str, content_type: str) -> str | None:
    """An address of the bucket itself that gives the object for an hour; None where clients might not reach the bucket."""
    public = settings.AWS_PUBLIC_ENDPOINT_URL
    if settings.AWS_ENDPOINT_URL and not public:
        return None  # a host inside a private network is of no use to a browser
    answer = {
        "ResponseContentType": content_type,
        "ResponseContentDisposition": content_disposition_header(True, name),
    }
    return str(_signing_store(public, settings.S3_BUCKET_NAME).url(key, parameters=answer, expire=SIGNED_SECONDS))


@lru_cache(maxsize=4)
def _signing_store(public: str, bucket: str) -> Any:
    """The host is part of what is signed, so the public one needs a store of its own (which only signs, and sends nothing)."""
    options = {**settings.STORAGES["default"]["OPTIONS"], "bucket_name": bucket}
    if public:
        options |= {"endpoint_url": public, "addressing_style": "path"}
    return type(storages["default"])(**options)
