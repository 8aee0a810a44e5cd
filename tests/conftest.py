"""Fixtures that tests of several packages share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rest_framework.test import APIClient

from medseg_site.celery import app
from medseg_site.shared.base.local_user import local_user

# A test that needs a server, a browser or more than a second of a processor is not among the fast ones (`-m fast`).
NOT_FAST = {"slow", "e2e", "browser", "reliability", "long", "s3", "postgres", "rabbitmq"}


# Tests with one of these marks ask a platform that runs for them.
ON_A_PLATFORM = {"e2e", "browser", "reliability"}


@pytest.hookimpl(tryfirst=True)  # before pytest selects by `-m` in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the fast tests, leaves the long ones to `make test-long`, and keeps tests of one platform in one process."""
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if not marks & NOT_FAST:
            item.add_marker("fast")
        if marks & ON_A_PLATFORM:
            item.add_marker(pytest.mark.xdist_group(platform_of(item)))
        if "long" in marks and not os.environ.get("MEDSEG_LONG_TESTS"):
            item.add_marker(pytest.mark.skip(reason="minutes long: `make test-long` runs it"))


def platform_of(item: pytest.Item) -> str:
    """The package or module whose tests share the platform that this test asks."""
    fixtures = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]  # pytest has no public way
    shared_by_package = any(made[-1].scope == "package" for made in fixtures.values())
    path = item.path.parent if shared_by_package else item.path
    return path.relative_to(Path(__file__).parent).as_posix()


@pytest.fixture(autouse=True)
def own_media(tmp_path: Path, settings: Any) -> Path:
    """Every test has an empty storage of its own."""
    root = tmp_path / "media"
    root.mkdir()
    options = {"location": str(root), "base_url": None}
    default = {"BACKEND": "medseg_site.shared.storage.local_folder.AtomicFileSystemStorage", "OPTIONS": options}
    settings.STORAGES = {**settings.STORAGES, "default": default}
    return root


@pytest.fixture
def eager_tasks() -> Iterator[None]:
    """Celery tasks run at once, in the test's own process (trainings still in a child of it)."""
    app.conf.task_always_eager = True
    yield
    app.conf.task_always_eager = False


@pytest.fixture
def user(db: None) -> Any:
    return local_user()


@pytest.fixture
def api(db: None) -> APIClient:
    return APIClient()
