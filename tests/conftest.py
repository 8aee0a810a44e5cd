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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests wait for `make test-reliability`."""
    if os.environ.get("MEDSEG_LONG_TESTS"):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="minutes long: `make test-reliability` runs it"))


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
