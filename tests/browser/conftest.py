"""A platform with nothing on it yet, and Chromium pages that note every error they see."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, sync_playwright

from tests.platform import Platform, running_platform

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
]
LOOK_MS = 60_000  # until something is to be seen; a page on a busy machine is slow
GAVE_UP = "net::ERR_ABORTED"  # the page left, or no longer wanted the picture: no failure
# What htmx writes when the page leaves in the middle of a poll: the end of a request, and that it was given up.
# A poll that fails is another line ("htmx:sendError"), which counts.
GAVE_UP_BY_HTMX = ("htmx:afterRequest,", "htmx:sendAbort,")


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with running_platform() as platform:
        yield platform


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if not program:
        pytest.skip("There is no Chromium on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser, platform: Platform) -> Iterator[Page]:
    """A page of this platform (addresses are relative). At its end the test fails if the page had seen any error."""
    context = chromium.new_context(base_url=platform.url, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(LOOK_MS)
    page = context.new_page()
    problems: list[str] = []

    def on_console(line: ConsoleMessage) -> None:
        if line.type == "error" and not line.text.startswith(GAVE_UP_BY_HTMX):
            problems.append(f"console: {line.text}")

    def on_failed(request: Request) -> None:
        if request.failure != GAVE_UP:
            problems.append(f"{request.method} {request.url}: {request.failure}")

    def on_response(response: Response) -> None:
        if response.status >= 400:
            problems.append(f"{response.request.method} {response.url}: status {response.status}")

    page.on("console", on_console)
    page.on("pageerror", lambda error: problems.append(f"script: {error}"))
    page.on("requestfailed", on_failed)
    page.on("response", on_response)
    yield page
    context.close()
    assert problems == []
