"""Parts that go from the browser straight to S3, by signed addresses; the platform sees none of their bytes."""

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
    """A bucket as a store of parts. The object is written under its final key, so using it moves nothing."""

    def begin(self, upload: Upload) -> str:
        answer = client().create_multipart_upload(
            Bucket=upload.s3_bucket, Key=upload.key, ContentType="application/zip"
        )
        return str(answer["UploadId"])

    def sign(self, upload: Upload, numbers: list[int]) -> dict[int, str]:
        if not upload.backend_id:  # the platform was stopped while it was being begun
            raise WrongStateError("This upload was never begun at S3. Begin it again.")
        return {number: sign("upload_part", {**_where(upload), "PartNumber": number}) for number in numbers}

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

    def assemble(self, upload: Upload, tags: dict[int, str]) -> None:
        parts = [{"PartNumber": number, "ETag": f'"{tag}"'} for number, tag in sorted(tags.items())]
        try:
            client().complete_multipart_upload(**_where(upload), MultipartUpload={"Parts": parts})
        except ClientError as error:
            if not (_is_gone(error) and _is_object(upload)):  # else an earlier try did it, and its answer was lost
                raise

    def tail(self, upload: Upload, length: int) -> bytes:
        span = f"bytes={max(0, upload.size - length)}-{upload.size - 1}"
        data: bytes = client().get_object(Bucket=upload.s3_bucket, Key=upload.key, Range=span)["Body"].read()
        return data

    def place(self, upload: Upload) -> None:
        """Nothing to do: the object has its final key."""

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
