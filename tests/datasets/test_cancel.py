"""A check that its user stops: while it waits, downloads or reads, and what can be done after."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from rest_framework.test import APIClient

from datasets import services
from datasets.check import check
from datasets.models import Dataset
from medseg_site.shared.base.errors import WrongStateError
from medseg_site.shared.base.local_user import local_user
from medseg_site.shared.jobs import claim, reaper
from medseg_site.shared.jobs.requests import request_cancel
from tests.datasets.test_check import objects, pairs, zipped
from tests.problems import find_problems

pytestmark = pytest.mark.django_db(transaction=True)


def uploaded(user: Any) -> Dataset:
    return services.create_dataset_from_upload(user=user, name="set", archive=zipped(pairs(4)))


def cancelled_at(stage: str) -> Any:
    """Claim.beat, before which somebody cancels as soon as the worker tells of this stage with something done."""
    beat = claim.Claim.beat

    def cancelled_then(job: claim.Claim[Any], progress: Any = None, **more: Any) -> None:
        if progress and progress["stage"] == stage and progress["done"]:
            request_cancel(Dataset.objects.get(pk=job.row.pk))
            more["force"] = True
        beat(job, progress, **more)

    return cancelled_then


@pytest.fixture
def site(settings: Any) -> Iterator[str]:
    """The address of a ZIP on a web server of this machine."""
    content = zipped(pairs(4)).read()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    settings.MEDSEG_URL_IMPORT_ALLOW_PRIVATE = True
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/set.zip"
    server.shutdown()
    server.server_close()


def test_a_check_that_waits_is_cancelled_at_once_and_can_be_started_again(
    user: Any, api: APIClient, own_media: Path
) -> None:
    dataset = uploaded(user)
    answer = api.post(f"/api/v1/datasets/{dataset.pk}/cancel/")
    assert (answer.status_code, answer.json()["status"], answer.json()["error"]) == (202, "error", Dataset.CANCELLED)
    assert find_problems() == [], "the manifest says it too"
    check(dataset.pk)  # the message that was sent for it
    dataset.refresh_from_db()
    assert dataset.status == "error"
    assert api.post(f"/api/v1/datasets/{dataset.pk}/cancel/").status_code == 409
    services.recheck_dataset(user=local_user(), dataset=dataset)
    check(dataset.pk)
    dataset.refresh_from_db()
    assert (dataset.status, dataset.file_count, dataset.cancel_requested) == ("ready", 4, False)
    with pytest.raises(WrongStateError, match="ready already"):
        services.cancel_dataset(user=local_user(), dataset=dataset)


def test_a_check_that_is_stopped_keeps_its_archive_only(
    user: Any, own_media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = uploaded(user)
    monkeypatch.setattr(claim.Claim, "beat", cancelled_at("checking"))
    check(dataset.pk)
    dataset.refresh_from_db()
    assert dataset.is_cancelled
    assert dataset.progress == {}
    assert objects(own_media) == [f"datasets/{dataset.uuid}/{name}" for name in ("archive.zip", "manifest.json")]
    assert [entry["event"] for entry in dataset.timeline] == ["queued", "claimed", "cancel requested", "error"]
    assert find_problems() == []


def test_a_download_that_is_stopped_leaves_nothing_and_can_be_begun_again(
    user: Any, own_media: Path, monkeypatch: pytest.MonkeyPatch, site: str
) -> None:
    dataset = services.create_dataset_from_url(user=user, name="set", source_url=site)
    with monkeypatch.context() as patch:
        patch.setattr(claim.Claim, "beat", cancelled_at("downloading"))
        check(dataset.pk)
    dataset.refresh_from_db()
    assert dataset.is_cancelled
    assert objects(own_media) == [f"datasets/{dataset.uuid}/manifest.json"]
    services.recheck_dataset(user=local_user(), dataset=dataset)
    check(dataset.pk)
    dataset.refresh_from_db()
    assert (dataset.status, dataset.error) == ("ready", None)
    assert dataset.checksum == hashlib.sha256((own_media / dataset.s3_key).read_bytes()).hexdigest()


def test_a_cancelled_check_whose_worker_died_ends_as_cancelled(user: Any, own_media: Path) -> None:
    dataset = uploaded(user)
    assert claim.claim(Dataset, dataset.pk)
    services.cancel_dataset(user=local_user(), dataset=dataset)
    assert (dataset.status, dataset.cancel_requested) == ("uploaded", True)
    past = timezone.now() - timedelta(seconds=reaper.STALE_SECONDS + 5)
    Dataset.objects.filter(pk=dataset.pk).update(heartbeat_at=past)
    reaper.reap(Dataset)
    dataset.refresh_from_db()
    assert (dataset.status, dataset.is_cancelled) == ("error", True), "it is not queued again"


def test_a_cancel_that_meets_an_outage_ends_the_check(user: Any, own_media: Path) -> None:
    dataset = uploaded(user)
    job = claim.claim(Dataset, dataset.pk)
    assert job
    services.cancel_dataset(user=local_user(), dataset=dataset)
    job.retry_later("Storage is away.")
    dataset.refresh_from_db()
    assert dataset.is_cancelled


def test_the_page_has_the_button_and_says_what_became_of_the_check(client: Client, user: Any, own_media: Path) -> None:
    dataset = uploaded(user)
    url = reverse("datasets:cancel", args=[dataset.pk])
    assert f'action="{url}"' in client.get(dataset.get_absolute_url()).content.decode()
    job = claim.claim(Dataset, dataset.pk)
    assert job
    assert client.post(url)["Location"] == dataset.get_absolute_url()
    stopping = client.get(dataset.get_absolute_url()).content.decode()
    assert "Stopping" in stopping
    assert "It is stopping already" in stopping
    job.cancel()
    page = client.get(dataset.get_absolute_url()).content.decode()
    assert "The check was cancelled." in page
    assert "Check again" in page
    assert "could not be used" not in page
    assert f'action="{url}"' not in page


def test_a_cancelled_check_starts_anew_over_the_api(api: APIClient, user: Any) -> None:
    dataset = uploaded(user)
    address = reverse("dataset-detail", args=[dataset.pk])
    assert api.post(f"{address}recheck/").status_code == 409  # it waits still
    assert api.post(f"{address}cancel/").json()["status"] == "error"
    answer = api.post(f"{address}recheck/")
    assert (answer.status_code, answer.json()["status"]) == (202, "uploaded")
    check(dataset.pk)
    assert api.get(address).json()["status"] == "ready"
