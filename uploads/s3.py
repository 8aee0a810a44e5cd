"""Parts that go from the browser straight to S3, by signed addresses; the platform sees none of their bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from django.conf import settings

from medseg_site.shared.base.errors import MedSegError, WrongStateError
from medseg_site.shared.storage import objects as storage
from uploads.models import Upload

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

SIGNED_SECONDS = 3600  # a part that takes longer is signed again
GONE = {"NoSuchUpload", "NoSuchKey", "404"}


@lru_cache(maxsize=4)
def _client(endpoint: str, key: str, secret: str, region: str) -> Any:
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if endpoint else "auto"},
        # Else boto3 signs a checksum of its own into the address, which no browser can send.
        request_checksum_calculation="when_required",
        retries={"mode": "standard", "max_attempts": 5},
    )
    return boto3.client(
        "s3",
        endpoint_url=endpoint or None,
        aws_access_key_id=key or None,
        aws_secret_access_key=secret or None,
        region_name=region,
        config=config,
    )


def client(*, public: bool = False) -> Any:
    """S3 as the platform reaches it, or (`public`) as browsers do: only for signing, nothing is sent there from here."""
    endpoint = (public and settings.AWS_PUBLIC_ENDPOINT_URL) or settings.AWS_ENDPOINT_URL
    return _client(endpoint, settings.AWS_ACCESS_KEY_ID, settings.AWS_SECRET_ACCESS_KEY, settings.AWS_REGION)


def _answering(method: Callable[P, T]) -> Callable[P, T]:
    """A store that does not answer is a 503 that says so; clients try again."""

    @wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except (BotoCoreError, ClientError) as error:
            log.warning("S3: %s", error)
            text = "The store of the files does not answer properly. Try again in a moment; what has arrived is kept."
            raise MedSegError("storage_unavailable", text, http_status=503) from error

    return guarded


def _is_gone(error: ClientError) -> bool:
    return error.response.get("Error", {}).get("Code") in GONE


class S3Parts:
    """A bucket as a store of parts. The object is written under its final key, so using it moves nothing."""

    @_answering
    def begin(self, upload: Upload) -> str:
        answer = client().create_multipart_upload(
            Bucket=upload.s3_bucket, Key=upload.key, ContentType="application/zip"
        )
        return str(answer["UploadId"])

    def sign(self, upload: Upload, numbers: list[int]) -> dict[int, str]:
        if not upload.backend_id:  # the platform was stopped while it was being begun
            raise WrongStateError("This upload was never begun at S3. Begin it again.")
        signer, where = client(public=True), _where(upload)
        return {
            number: signer.generate_presigned_url(
                "upload_part", Params={**where, "PartNumber": number}, ExpiresIn=SIGNED_SECONDS
            )
            for number in numbers
        }

    @_answering
    def stored(self, upload: Upload) -> dict[int, tuple[int, str]]:
        """Size and ETag of each part that is there. Raises WrongStateError when S3 knows the upload no more."""
        if not upload.backend_id:
            return {}
        try:
            pages = client().get_paginator("list_parts").paginate(**_where(upload))
            return {
                int(part["PartNumber"]): (int(part["Size"]), part["ETag"].strip('"'))
                for page in pages
                for part in page.get("Parts", [])
            }
        except ClientError as error:
            if not _is_gone(error):
                raise
        if _is_object(upload):  # the platform was stopped after S3 had put the parts together
            return {number: (upload.bytes_of(number), "") for number in range(1, upload.part_count + 1)}
        raise WrongStateError("The parts that had arrived are gone from S3. Begin the upload again.")

    @_answering
    def assemble(self, upload: Upload, tags: dict[int, str]) -> None:
        parts = [{"PartNumber": number, "ETag": f'"{tag}"'} for number, tag in sorted(tags.items())]
        try:
            client().complete_multipart_upload(**_where(upload), MultipartUpload={"Parts": parts})
        except ClientError as error:
            if not (_is_gone(error) and _is_object(upload)):  # else an earlier try did it, and its answer was lost
                raise

    @_answering
    def tail(self, upload: Upload, length: int) -> bytes:
        span = f"bytes={max(0, upload.size - length)}-{upload.size - 1}"
        data: bytes = client().get_object(Bucket=upload.s3_bucket, Key=upload.key, Range=span)["Body"].read()
        return data

    def place(self, upload: Upload) -> None:
        """Nothing to do: the object has its final key."""

    @_answering
    def remove(self, upload: Upload) -> None:
        """Abort whatever S3 still holds under the key (also what was begun but never written down), and delete the object."""
        pages = client().get_paginator("list_multipart_uploads").paginate(Bucket=upload.s3_bucket, Prefix=upload.key)
        for begun in [item for page in pages for item in page.get("Uploads", [])]:
            where = {"Bucket": upload.s3_bucket, "Key": begun["Key"], "UploadId": begun["UploadId"]}
            try:
                client().abort_multipart_upload(**where)
            except ClientError as error:
                if not _is_gone(error):
                    raise
        storage.delete_prefix(upload.key.rpartition("/")[0])


def _where(upload: Upload) -> dict[str, str]:
    return {"Bucket": upload.s3_bucket, "Key": upload.key, "UploadId": upload.backend_id}


def _is_object(upload: Upload) -> bool:
    try:
        found = client().head_object(Bucket=upload.s3_bucket, Key=upload.key)
    except ClientError as error:
        if _is_gone(error):
            return False
        raise
    return bool(found["ContentLength"] == upload.size)
