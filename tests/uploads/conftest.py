"""A ZIP that is a good dataset and several parts long, and a client that sends it as a browser would."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
import numpy as np
import pytest
import requests
from moto.server import ThreadedMotoServer
from rest_framework.test import APIClient

from tests.e2e import drawings

PART = 2**20
S3_PART = 5 * 2**20
BUCKET = "medseg-uploads"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tests-only", "AWS_SECRET_ACCESS_KEY": "tests-only", "AWS_REGION": "eu-central-1"}


def big_zip(size: int) -> bytes:
    """A dataset with a file in it that no compression makes smaller; about `size` bytes."""
    buffer = io.BytesIO(drawings.png_dataset(pairs=4))
    noise = np.random.default_rng(7).integers(0, 256, size, np.uint8).tobytes()
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("notes/noise.bin", noise)
    return buffer.getvalue()


@dataclass
class Sender:
    """Speaks to /api/v1/uploads/, and to wherever the signed addresses point."""

    api: APIClient
    content: bytes
    purpose: str = "dataset"
    upload: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return f"/api/v1/uploads/{self.upload['id']}/"

    def create(self, **more: Any) -> Any:
        body = {"file_name": "C:\\data\\big set.zip", "size": len(self.content), "purpose": self.purpose, **more}
        answer = self.api.post("/api/v1/uploads/", body)
        self.upload = answer.json()
        return answer

    def part(self, number: int) -> bytes:
        size = self.upload["part_size"]
        return self.content[(number - 1) * size : number * size]

    @property
    def numbers(self) -> list[int]:
        return list(range(1, self.upload["part_count"] + 1))

    def sign(self, numbers: list[int]) -> dict[int, str]:
        sums = {str(number): hashlib.sha256(self.part(number)).hexdigest() for number in numbers}
        answer = self.api.post(f"{self.path}sign/", {"part_numbers": numbers, "checksums": sums})
        assert answer.status_code == 200, answer.content
        return {part["PartNumber"]: part["url"] for part in answer.json()["parts"]}

    def put(self, url: str, data: bytes) -> Any:
        if url.startswith("http"):
            with requests.Session() as session:
                session.trust_env = False
                return session.put(url, data=data, timeout=60)
        return self.api.put(url, data, content_type="application/octet-stream")

    def send(self, numbers: list[int]) -> list[dict[str, Any]]:
        """Returns what `complete/` wants to hear of these parts."""
        tags = []
        for number, url in self.sign(numbers).items():
            answer = self.put(url, self.part(number))
            assert answer.status_code == 200, answer.content
            tags.append({"PartNumber": number, "ETag": answer.headers["ETag"]})
        return tags

    def arrived(self) -> dict[int, dict[str, Any]]:
        answer = self.api.get(f"{self.path}parts/")
        assert answer.status_code == 200, answer.content
        return {part["PartNumber"]: part for part in answer.json()["parts"]}

    def complete(self, *tags: dict[str, Any]) -> Any:
        return self.api.post(f"{self.path}complete/", {"parts": list(tags)} if tags else {})

    def send_all(self) -> Any:
        self.create()
        answer = self.complete(*self.send(self.numbers))
        assert answer.status_code == 200, answer.content
        return answer

    def make_dataset(self, name: str = "big set") -> Any:
        return self.api.post("/api/v1/datasets/", {"name": name, "upload": self.upload["id"]})


@pytest.fixture
def api(db: None) -> APIClient:
    return APIClient(raise_request_exception=False)  # answers of 5xx are what some tests are about


@pytest.fixture
def sender(api: APIClient, settings: Any) -> Sender:
    settings.MEDSEG_UPLOAD_PART_BYTES = PART
    return Sender(api, big_zip(3 * PART))


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, settings: Any) -> Iterator[Any]:
    """Storage is a bucket of moto's server during this test."""
    for name, value in CREDENTIALS.items():
        setattr(settings, name, value)
    settings.S3_BUCKET_NAME = BUCKET
    settings.AWS_ENDPOINT_URL = settings.AWS_PUBLIC_ENDPOINT_URL = endpoint
    options = {
        "bucket_name": BUCKET,
        "access_key": CREDENTIALS["AWS_ACCESS_KEY_ID"],
        "secret_key": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        "region_name": CREDENTIALS["AWS_REGION"],
        "endpoint_url": endpoint,
        "addressing_style": "path",
        "default_acl": None,
        "file_overwrite": True,
        "signature_version": "s3v4",
    }
    default = {"BACKEND": "storages.backends.s3.S3Storage", "OPTIONS": options}
    settings.STORAGES = {**settings.STORAGES, "default": default}
    store = boto3.resource(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=CREDENTIALS["AWS_REGION"],
    )
    where = {"LocationConstraint": CREDENTIALS["AWS_REGION"]}
    bucket = store.create_bucket(Bucket=BUCKET, CreateBucketConfiguration=where)
    yield bucket
    for begun in bucket.multipart_uploads.all():
        begun.abort()
    bucket.objects.delete()
    bucket.delete()


@pytest.fixture
def s3_sender(api: APIClient, bucket: Any, settings: Any) -> Sender:
    settings.MEDSEG_UPLOAD_PART_BYTES = PART
    return Sender(api, big_zip(2 * S3_PART))
