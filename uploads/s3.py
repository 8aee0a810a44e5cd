"""Parts go from the browser straight to S3, through signed addresses. None of their bytes passes the platform."""

from __future__ import annotations

from botocore.exceptions import ClientError

from medseg_site.shared.base.errors import WrongStateError
from medseg_site.shared.storage import objects as storage
from medseg_site.shared.storage.remote import client, sign
from uploads.models import Upload

GONE = {"NoSuchUpload", "NoSuchKey", "404"}


def _is_gone(error: ClientError) -> bool:
    return error.response.get("Error", {}).get("Code") in GONE


class S3Parts:
    """An S3 bucket as a store of parts (see uploads.backends.Parts). The object has its final key from the start."""

    def begin(self, upload: Upload) -> str:
        answer = client().create_multipart_upload(
            Bucket=upload.s3_bucket, Key=upload.key, ContentType="application/zip"
        )
        return str(answer["UploadId"])

    def sign(self, upload: Upload, numbers: list[int]) -> dict[int, str]:
        # The platform was stopped before S3 had answered `begin`.
        if not upload.backend_id:
            raise WrongStateError("This upload did not reach S3. Begin it again.")
        return {number: sign("upload_part", {**_where(upload), "PartNumber": number}) for number in numbers}

    def stored(self, upload: Upload) -> dict[int, tuple[int, str]]:
        """Size in bytes and ETag of each part that has arrived.

        Raises WrongStateError when S3 does not know the upload any more.
        """
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
        # The platform was stopped after S3 had joined the parts.
        if _is_object(upload):
            return {number: (upload.bytes_of(number), "") for number in range(1, upload.part_count + 1)}
        raise WrongStateError("The parts that had arrived are gone from S3. Begin the upload again.")

    def assemble(self, upload: Upload, tags: dict[int, str]) -> None:
        parts = [{"PartNumber": number, "ETag": f'"{tag}"'} for number, tag in sorted(tags.items())]
        try:
            client().complete_multipart_upload(**_where(upload), MultipartUpload={"Parts": parts})
        except ClientError as error:
            # S3 does not know an upload whose parts it joined before. The answer to that request was lost.
            if not (_is_gone(error) and _is_object(upload)):
                raise

    def tail(self, upload: Upload, length: int) -> bytes:
        span = f"bytes={max(0, upload.size - length)}-{upload.size - 1}"
        data: bytes = client().get_object(Bucket=upload.s3_bucket, Key=upload.key, Range=span)["Body"].read()
        return data

    def place(self, upload: Upload) -> None:
        """Do nothing: the object has its final key already."""

    def remove(self, upload: Upload) -> None:
        """Abort every upload that S3 holds under the key, even one that no row names, and delete the object."""
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
        answer = client().head_object(Bucket=upload.s3_bucket, Key=upload.key)
    except ClientError as error:
        if _is_gone(error):
            return False
        raise
    return bool(answer["ContentLength"] == upload.size)
