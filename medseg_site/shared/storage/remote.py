"""What S3 offers beyond Django's storage interface: the one client, the one signer, and reading by parts.

Only called where objects lie in a bucket.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from typing import IO, Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, IncompleteReadError
from django.conf import settings
from django.core.files.storage import default_storage
from django.utils.http import content_disposition_header

SIGNED_SECONDS = 3600
CONNECTIONS = 32  # kept open at most
CONFIG = Config(
    signature_version="s3v4",
    max_pool_connections=CONNECTIONS,
    # A store that does not answer is asked again within half a minute; what lasts longer is an outage (base/outages.py).
    connect_timeout=5,
    read_timeout=20,
    retries={"mode": "standard", "max_attempts": 4},
)
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
    """The ETag of an object. Raises FileNotFoundError, as every function here that names one object."""
    with _missing_is_file_not_found(key):
        return str(_whole(_bucket().Object(key).e_tag))


def size_of(key: str) -> int:
    with _missing_is_file_not_found(key):
        return int(_whole(_bucket().Object(key).content_length))


def open_whole(key: str, tag: str | None = None) -> IO[bytes]:
    """The object as a stream from S3. With `tag`, only if the object still has this ETag."""
    with _missing_is_file_not_found(key):
        answer = _bucket().Object(key).get(**({"IfMatch": tag} if tag else {}))
    return _body(answer)


def open_range(key: str, start: int, end: int) -> IO[bytes]:
    with _missing_is_file_not_found(key):
        answer = _bucket().Object(key).get(Range=f"bytes={start}-{end - 1}")
    return _body(answer)


def _body(answer: dict[str, Any]) -> IO[bytes]:
    """The body of an answer as a stream. botocore compares the body with its length; here the head is checked to have one."""
    _whole(answer.get("ContentLength"))
    return io.BufferedReader(_Checked(answer["Body"]), BUFFER)


class _Checked(io.RawIOBase):
    """A body that is always read through botocore's check of its length. In a `with`, botocore itself would leave the check out."""

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
    """The field of an answer's head. Python accepts a head that was cut off, so a field that S3 always sends may be missing."""
    if header is None:
        raise IncompleteReadError(actual_bytes=0, expected_bytes="an answer with its whole head")
    return header


def below(prefix: str) -> Any:
    """The objects whose keys begin with `prefix`, sorted by key."""
    return _bucket().objects.filter(Prefix=prefix)


def delete_below(prefix: str) -> None:
    for answer in below(prefix).delete():
        _refuse_errors(answer)


def _refuse_errors(answer: dict[str, Any]) -> None:
    """S3 answers 200 even if it could not delete some of the objects. Raises ClientError for those."""
    for error in answer.get("Errors", ()):
        raise ClientError(
            {"Error": {"Code": error.get("Code", ""), "Message": error.get("Message", "")},
             "ResponseMetadata": {"HTTPStatusCode": 503}},
            "DeleteObjects",
        )  # fmt: skip


def delete_keys(keys: Iterable[str]) -> None:
    """Remove objects, a thousand in each request, which is S3's limit."""
    left = iter(keys)
    while some := [{"Key": key} for key in islice(left, 1000)]:
        answer = _bucket().delete_objects(Delete={"Objects": some, "Quiet": True})
        _refuse_errors(answer)


def signed_url(key: str, *, name: str, content_type: str) -> str | None:
    """An address of the bucket itself that gives the object for an hour; None where clients might not reach the bucket."""
    if settings.AWS_ENDPOINT_URL and not settings.AWS_PUBLIC_ENDPOINT_URL:
        # A browser cannot reach a host inside a private network.
        return None
    answer = {
        "ResponseContentType": content_type,
        "ResponseContentDisposition": content_disposition_header(True, name),
    }
    return sign("get_object", {"Bucket": settings.S3_BUCKET_NAME, "Key": key, **answer})


def sign(operation: str, parameters: dict[str, Any]) -> str:
    """An address that lets whoever has it do one operation of S3's for an hour. Nothing is sent for it."""
    # The host is part of what is signed, so it is the one that browsers reach.
    signer = _client(settings.AWS_PUBLIC_ENDPOINT_URL or settings.AWS_ENDPOINT_URL, *_credentials())
    return str(signer.generate_presigned_url(operation, Params=parameters, ExpiresIn=SIGNED_SECONDS))


def client() -> Any:
    """boto3's client of S3, for what django-storages has no method for."""
    return _client(settings.AWS_ENDPOINT_URL, *_credentials())


def _credentials() -> tuple[str, str, str]:
    return settings.AWS_ACCESS_KEY_ID, settings.AWS_SECRET_ACCESS_KEY, settings.AWS_REGION


@lru_cache(maxsize=4)
def _client(endpoint: str, key: str, secret: str, region: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint or None,
        aws_access_key_id=key or None,
        aws_secret_access_key=secret or None,
        region_name=region,
        config=CONFIG.merge(
            Config(
                s3={"addressing_style": "path" if endpoint else "auto"},
                # Else boto3 signs a checksum of its own into an address, which no browser can send.
                request_checksum_calculation="when_required",
            )
        ),
    )
