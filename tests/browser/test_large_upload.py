"""A large upload in Chromium that is cut in the middle: the page is closed, the server restarted, the line lost."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect
from playwright.sync_api import Error as PlaywrightError

from tests.browser.conftest import LOOK_MS
from tests.platform import WORK_SECONDS, Json, Platform, running_platform
from tests.uploads.conftest import big_zip

pytestmark = pytest.mark.browser

PART = 2**20
PARTS = 9


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with running_platform(MEDSEG_UPLOAD_PART_MB="1") as platform:
        yield platform


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chosen") / "large_set.zip"
    path.write_bytes(big_zip((PARTS - 1) * PART))
    return path


@pytest.fixture
def context(chromium: Browser, platform: Platform) -> Iterator[Any]:
    """One browser profile: what its pages remember outlives them. Errors are expected here, so none is noted."""
    context = chromium.new_context(base_url=platform.url)
    context.set_default_timeout(LOOK_MS)
    yield context
    context.close()


def choose(page: Page, archive: Path) -> None:
    page.goto("/datasets/new/")
    page.get_by_label("ZIP file", exact=True).set_input_files(archive)


def count_parts(page: Page) -> list[str]:
    """Fills up with the numbers of the parts that this page sends."""
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "PUT" else None)
    return sent


def hold_after(page: Page, parts: int) -> list[Route]:
    """Lets so many parts through and holds the others."""
    held: list[Route] = []
    passed = 0

    def decide(route: Route) -> None:
        nonlocal passed
        passed += 1
        if passed > parts:
            held.append(route)
        else:
            route.continue_()

    page.route("**/api/v1/uploads/*/parts/*/", decide)
    return held


def release(page: Page, held: list[Route]) -> None:
    page.unroute_all()
    for route in held:
        with suppress(PlaywrightError):  # the page may have given it up itself
            route.continue_()


def press_upload(page: Page) -> None:
    page.get_by_role("tabpanel").get_by_role("button", name="Upload").click()


def only_upload(platform: Platform) -> Json:
    (upload,) = platform.wait_for("uploads/?state=open", lambda document: document["count"] == 1)["results"]
    found: Json = upload
    return found


def wait_for_parts(page: Page, platform: Platform, upload: Json, count: int) -> None:
    """Playwright lets requests through only while it is asked to wait."""
    deadline = time.monotonic() + WORK_SECONDS
    while len(arrived(platform, upload)) != count:
        assert time.monotonic() < deadline, arrived(platform, upload)
        page.wait_for_timeout(100)


def arrived(platform: Platform, upload: Json) -> list[int]:
    return [part["PartNumber"] for part in platform.get(f"uploads/{upload['id']}/parts/")["parts"]]


def is_whole(platform: Platform, page: Page, archive: Path) -> None:
    page.wait_for_url(re.compile(r"/datasets/\d+/$"))
    row = platform.wait_until_ended(f"datasets/{page.url.rstrip('/').rpartition('/')[2]}/")
    assert (row["status"], row["error"]) == ("ready", None)
    assert row["checksum"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert (platform.folder / "media" / row["s3_key"]).read_bytes() == archive.read_bytes()


def test_goes_on_after_a_closed_page_and_a_restarted_server(context: Any, platform: Platform, archive: Path) -> None:
    first = context.new_page()
    choose(first, archive)
    hold_after(first, 4)
    press_upload(first)
    expect(first.get_by_text(re.compile(r"\d+ % of 8\.\d MB"))).to_be_visible()
    upload = only_upload(platform)
    assert upload["part_count"] == PARTS
    wait_for_parts(first, platform, upload, 4)
    first.close()

    left = platform.stop()
    assert not left
    platform.start()
    assert len(arrived(platform, upload)) == 4

    second = context.new_page()
    choose(second, archive)
    expect(second.get_by_text("An upload of this file was interrupted. 4")).to_be_visible()
    sent = count_parts(second)
    press_upload(second)
    is_whole(platform, second, archive)
    assert len(sent) == PARTS - 4, "parts that had arrived were sent again"
    assert platform.get("uploads/?state=open")["count"] == 0


@pytest.mark.long
def test_waits_for_the_connection_and_can_be_paused(context: Any, platform: Platform, archive: Path) -> None:
    page = context.new_page()
    choose(page, archive)
    held = hold_after(page, 2)
    press_upload(page)
    upload = only_upload(platform)
    wait_for_parts(page, platform, upload, 2)

    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text(re.compile("Paused"))).to_be_visible()
    release(page, held)
    context.set_offline(True)
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_text(re.compile("Waiting for it; the upload goes on by itself"))).to_be_visible()
    assert len(arrived(platform, upload)) == 2
    context.set_offline(False)
    is_whole(platform, page, archive)


@pytest.mark.long
def test_the_web_process_dies_in_the_middle(context: Any, platform: Platform, archive: Path) -> None:
    page = context.new_page()
    choose(page, archive)
    held = hold_after(page, 3)
    press_upload(page)
    upload = only_upload(platform)
    wait_for_parts(page, platform, upload, 3)
    (web,) = platform.processes_of("uvicorn")[:1]
    web.kill()
    release(page, held)
    is_whole(platform, page, archive)


@pytest.mark.long
def test_stopping_leaves_nothing(context: Any, platform: Platform, archive: Path) -> None:
    page = context.new_page()
    choose(page, archive)
    hold_after(page, 2)
    press_upload(page)
    upload = only_upload(platform)
    wait_for_parts(page, platform, upload, 2)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped. Nothing was kept.")).to_be_visible()
    platform.wait_for("uploads/?state=open", lambda document: document["count"] == 0)
    assert not any(key.startswith("uploads/") for key in platform.media())


def test_a_large_file_that_is_no_zip_is_refused_before_it_is_sent(
    context: Any, platform: Platform, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.zip"
    wrong.write_bytes(bytes(3 * PART))
    page = context.new_page()
    choose(page, wrong)
    press_upload(page)
    expect(page.get_by_text("wrong.zip is not a ZIP file, or it is damaged.")).to_be_visible()
    assert platform.get("uploads/?state=open")["count"] == 0
