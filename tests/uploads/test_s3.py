"""The same with a bucket (moto's server over HTTP): the parts never pass through the platform."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from datetime import timedelta
from typing import Any

import pytest
import requests
from django.core.management import call_command
from django.utils import timezone
from rest_framework.test import APIClient

from datasets.check import check
from datasets.models import Dataset
from inference.batches import expand
from inference.models import InferenceBatch, InferenceResult
from tests.e2e import drawings
from tests.factories import CompletedModelFactory
from tests.uploads.conftest import S3_PART, Sender
from uploads import s3
from uploads.cleaning import clean
from uploads.models import Upload
from uploads.services import complete_upload

pytestmark = [pytest.mark.django_db, pytest.mark.s3]


def keys(bucket: Any) -> list[str]:
    return sorted(item.key for item in bucket.objects.all())


def test_parts_go_straight_to_the_bucket_and_the_object_stays_where_it_is(
    s3_sender: Sender, bucket: Any, endpoint: str
) -> None:
    sender = s3_sender
    sender.create()
    assert sender.upload["part_size"] >= S3_PART, "S3 takes no smaller parts"
    urls = sender.sign(sender.numbers)
    assert all(url.startswith(f"{endpoint}/{bucket.name}/datasets/{sender.upload['id']}/") for url in urls.values())
    assert not any("checksum" in url.lower() for url in urls.values()), "a browser could not send what was signed"
    tags = sender.send(sender.numbers)
    assert sender.complete(*tags).status_code == 200
    made = sender.make_dataset()
    assert made.status_code == 202, made.content
    dataset = Dataset.objects.get(pk=made.json()["id"])
    assert keys(bucket) == [dataset.s3_key]
    check(dataset.pk)
    dataset.refresh_from_db()
    assert (dataset.status, dataset.error) == ("ready", None)
    assert dataset.checksum == hashlib.sha256(sender.content).hexdigest()
    assert bucket.Object(dataset.s3_key).get()["Body"].read() == sender.content


def test_goes_on_with_the_missing_parts(s3_sender: Sender) -> None:
    s3_sender.create()
    s3_sender.send([1])
    arrived = s3_sender.arrived()
    assert {n: part["Size"] for n, part in arrived.items()} == {1: s3_sender.upload["part_size"]}
    assert arrived[1]["sha256"] == hashlib.sha256(s3_sender.part(1)).hexdigest()
    assert s3_sender.complete().status_code == 400
    s3_sender.send(s3_sender.numbers[1:])
    assert s3_sender.complete().status_code == 200


def test_the_platforms_own_endpoint_takes_no_part(s3_sender: Sender) -> None:
    s3_sender.create()
    answer = s3_sender.put(f"{s3_sender.path}parts/1/", s3_sender.part(1))
    assert answer.status_code == 409


def test_a_public_endpoint_is_what_browsers_are_sent_to(s3_sender: Sender, settings: Any) -> None:
    settings.AWS_PUBLIC_ENDPOINT_URL = "https://files.lab.example"
    s3_sender.create()
    url = s3_sender.sign([1])[1]
    assert url.startswith("https://files.lab.example/")
    assert "X-Amz-Signature=" in url


def test_a_part_of_the_wrong_size_is_found_before_the_object_is_made(s3_sender: Sender, bucket: Any) -> None:
    s3_sender.create()
    urls = s3_sender.sign(s3_sender.numbers)
    for number, url in urls.items():
        data = s3_sender.part(number)
        assert s3_sender.put(url, data if number > 1 else data + b"more").status_code == 200
    answer = s3_sender.complete()
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "wrong_size")
    assert keys(bucket) == []


def test_the_check_finds_a_part_that_was_changed_on_its_way(s3_sender: Sender, bucket: Any) -> None:
    s3_sender.create()
    for number, url in s3_sender.sign(s3_sender.numbers).items():
        data = bytearray(s3_sender.part(number))
        data[1000] ^= number == 2
        s3_sender.put(url, bytes(data))
    assert s3_sender.complete().status_code == 200
    pk = s3_sender.make_dataset().json()["id"]
    check(pk)
    assert "Part 2 of the archive was damaged" in (Dataset.objects.get(pk=pk).error or "")
    assert keys(bucket) == []


def test_completing_goes_on_where_a_killed_process_left_it(s3_sender: Sender, monkeypatch: Any) -> None:
    s3_sender.create()
    s3_sender.send(s3_sender.numbers)

    def killed(*given: Any) -> bytes:
        raise KeyboardInterrupt

    upload = Upload.objects.get()
    with monkeypatch.context() as patch:
        patch.setattr(s3.S3Parts, "tail", killed)
        with pytest.raises(KeyboardInterrupt):
            complete_upload(upload=upload)
    upload.refresh_from_db()
    assert upload.state == "open"
    assert sorted(s3_sender.arrived()) == s3_sender.numbers
    assert s3_sender.complete().json()["state"] == "complete"


def test_a_file_that_is_no_zip_is_removed_from_the_bucket(api: APIClient, bucket: Any) -> None:
    sender = Sender(api, os.urandom(1000))
    sender.create()
    sender.send([1])
    assert sender.complete().json()["errors"][0]["code"] == "not_a_zip"
    assert keys(bucket) == []


def test_cleaning_aborts_what_the_bucket_holds(s3_sender: Sender, bucket: Any) -> None:
    s3_sender.create()
    s3_sender.send([1])
    assert len(list(bucket.multipart_uploads.all())) == 1
    # The number that S3 gave was never written down: the platform was killed just then.
    Upload.objects.update(backend_id="", updated_at=timezone.now() - timedelta(days=9))
    assert clean() == 1
    assert list(bucket.multipart_uploads.all()) == []
    whole = Sender(s3_sender.api, s3_sender.content)
    whole.send_all()
    assert len(keys(bucket)) == 1
    Upload.objects.update(updated_at=timezone.now() - timedelta(days=9))
    assert clean() == 1
    assert keys(bucket) == []


def test_an_upload_that_never_reached_the_bucket_is_begun_again(s3_sender: Sender) -> None:
    s3_sender.create()
    Upload.objects.update(backend_id="")
    assert s3_sender.arrived() == {}
    assert s3_sender.api.post(f"{s3_sender.path}sign/", {"part_numbers": [1]}).status_code == 409
    assert s3_sender.complete().status_code == 400


def test_a_store_that_does_not_answer_is_a_503(s3_sender: Sender, settings: Any) -> None:
    s3_sender.create()
    settings.AWS_ENDPOINT_URL = "http://127.0.0.1:1"
    answer = s3_sender.api.get(f"{s3_sender.path}parts/")
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (503, "unavailable")
    again = Sender(s3_sender.api, s3_sender.content)
    assert again.create().status_code == 503
    assert Upload.objects.count() == 1


def test_batches_take_uploads_too(api: APIClient, bucket: Any) -> None:
    model = CompletedModelFactory.create()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(3):
            archive.writestr(f"{number}.png", drawings.png(drawings.disc(number)[0]))
    sender = Sender(api, buffer.getvalue(), purpose="batch")
    sender.send_all()
    body = {"model": model.pk, "upload": sender.upload["id"]}
    made = api.post("/api/v1/inference-batches/", body)
    assert made.status_code == 202, made.content
    assert api.post("/api/v1/inference-batches/", body).json()["id"] == made.json()["id"]
    batch = InferenceBatch.objects.get()
    assert keys(bucket) == [f"batches/{sender.upload['id']}/archive.zip"]
    expand(batch.pk)
    assert InferenceResult.objects.filter(batch=batch).count() == 3
    neither = api.post("/api/v1/inference-batches/", {"model": model.pk})
    assert neither.status_code == 400


def test_the_buckets_rule_for_browsers_is_set_by_a_command(bucket: Any, endpoint: str) -> None:
    call_command("set_bucket_cors", "https://medseg.example.org/")
    rule = bucket.Cors().cors_rules[0]
    assert (rule["AllowedOrigins"], rule["ExposeHeaders"]) == (["https://medseg.example.org"], ["ETag"])
    asked = {"Origin": "https://medseg.example.org", "Access-Control-Request-Method": "PUT"}
    with requests.Session() as session:
        session.trust_env = False
        answer = session.options(f"{endpoint}/{bucket.name}/x", headers=asked, timeout=10)
    assert "PUT" in answer.headers["Access-Control-Allow-Methods"]
