"""The same way through with all objects in a bucket of an S3-compatible store (moto's server, over HTTP)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from tests.e2e.walk import delete_all, walk
from tests.platform import Platform, running_platform

pytestmark = [pytest.mark.e2e, pytest.mark.s3]

BUCKET = "medseg-objects"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tests-only", "AWS_SECRET_ACCESS_KEY": "tests-only", "AWS_REGION": "eu-central-1"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def bucket(endpoint: str) -> Any:
    store = boto3.resource(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=CREDENTIALS["AWS_REGION"],
    )
    where = {"LocationConstraint": CREDENTIALS["AWS_REGION"]}
    return store.create_bucket(Bucket=BUCKET, CreateBucketConfiguration=where)


@pytest.fixture(scope="module")
def platform(endpoint: str, bucket: Any) -> Iterator[Platform]:
    with running_platform(**CREDENTIALS, S3_BUCKET_NAME=bucket.name, AWS_ENDPOINT_URL=endpoint) as platform:
        yield platform


def is_public(key: str) -> bool:
    """Asked of moto itself: its API cannot tell the ACL of an object that came in parts without one."""
    stored: Any = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[BUCKET].keys[key]
    return stored.acl is not None and stored.acl.public_read


def test_all_objects_are_private_ones_of_the_bucket_until_they_are_deleted(platform: Platform, bucket: Any) -> None:
    walked = walk(platform)
    assert walked.dataset["s3_bucket"] == walked.model["s3_bucket"] == bucket.name
    objects = {item.key: item for item in bucket.objects.all()}
    assert walked.keys <= set(objects)
    assert {key.split("/")[0] for key in objects} == {"datasets", "models", "inferences"}
    assert not any("checkpoints" in key for key in objects), "a completed training keeps no checkpoints"
    assert [key for key in objects if is_public(key)] == []
    assert platform.media() == set(), "something went to the local folder"

    delete_all(platform, walked)
    assert [item.key for item in bucket.objects.all()] == []
    owners = {key.split("/")[1] for key in objects}
    left = [path for path in platform.folder.rglob("*") if path.name in owners]
    assert left == [], "the local cache still holds something of them"


def test_a_bucket_that_does_not_answer_is_named_by_readyz(endpoint: str, platform: Platform, bucket: Any) -> None:
    assert platform.get(f"{platform.url}/readyz")["parts"]["storage"] == "ok"
    bucket.objects.delete()
    bucket.delete()
    try:
        answer = platform.request("GET", f"{platform.url}/readyz", expect=503).json()
        assert answer["parts"]["storage"] != "ok"
        assert (answer["parts"]["database"], answer["parts"]["broker"]) == ("ok", "ok")
    finally:
        bucket.create(CreateBucketConfiguration={"LocationConstraint": CREDENTIALS["AWS_REGION"]})
