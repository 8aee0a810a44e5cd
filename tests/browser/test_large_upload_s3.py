"""The same with a bucket (moto's server): Chromium sends the parts there, and goes on after its page was closed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import LOOK_MS
from tests.browser.test_large_upload import arrived, choose, press_upload, wait_for_parts
from tests.platform import Platform, running_platform
from tests.uploads.conftest import BUCKET, CREDENTIALS, S3_PART, big_zip
from tests.uploads.conftest import endpoint as endpoint

pytestmark = [pytest.mark.browser, pytest.mark.s3, pytest.mark.long]


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
    return store.create_bucket(Bucket=f"{BUCKET}-browser", CreateBucketConfiguration=where)


@pytest.fixture(scope="module")
def platform(endpoint: str, bucket: Any) -> Iterator[Platform]:
    wanted = {**CREDENTIALS, "S3_BUCKET_NAME": bucket.name, "AWS_ENDPOINT_URL": endpoint, "MEDSEG_UPLOAD_PART_MB": "5"}
    with running_platform(**wanted) as platform:
        yield platform


def sends_of(page: Page) -> list[str]:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "PUT" else None)
    return sent


def test_parts_go_to_the_bucket_and_a_closed_page_costs_nothing(
    chromium: Browser, platform: Platform, bucket: Any, endpoint: str, tmp_path: Path
) -> None:
    archive = tmp_path / "large_set.zip"
    archive.write_bytes(big_zip(3 * S3_PART))
    context = chromium.new_context(base_url=platform.url)
    context.set_default_timeout(LOOK_MS)
    first = context.new_page()
    choose(first, archive)
    passed = []

    def decide(route: Any) -> None:
        passed.append(route)
        if len(passed) <= 2:
            route.continue_()

    first.route(f"{endpoint}/**", decide)
    press_upload(first)
    (upload,) = platform.wait_for("uploads/?state=open", lambda document: document["count"] == 1)["results"]
    wait_for_parts(first, platform, upload, 2)
    first.close()

    second = context.new_page()
    choose(second, archive)
    expect(second.get_by_text("An upload of this file was interrupted.")).to_be_visible()
    # The page that was closed may have sent one more part on its way out.
    stored = arrived(platform, upload)
    assert len(stored) >= 2
    sent = sends_of(second)
    press_upload(second)
    second.wait_for_url(re.compile(r"/datasets/\d+/$"))
    row = platform.wait_until_ended(f"datasets/{second.url.rstrip('/').rpartition('/')[2]}/")
    context.close()
    assert (row["status"], row["error"]) == ("ready", None)
    assert row["checksum"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert len(sent) == upload["part_count"] - len(stored)
    assert all(url.startswith(f"{endpoint}/{bucket.name}/") for url in sent)
    assert list(bucket.multipart_uploads.all()) == []
