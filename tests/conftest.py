"""Fixtures that tests of several packages share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.files.storage import default_storage
from rest_framework.test import APIClient

from medseg_site.celery import app
from medseg_site.shared.local_user import local_user


@pytest.fixture(autouse=True)
def own_media(tmp_path: Path, settings: Any) -> Iterator[Path]:
    """Every test has an empty storage of its own."""
    root = tmp_path / "media"
    root.mkdir()
    settings.MEDIA_ROOT = root
    before = default_storage.base_location, default_storage.location
    default_storage.__dict__.pop("base_location", None)
    backend = default_storage._wrapped if hasattr(default_storage, "_wrapped") else default_storage
    backend._location = str(root)
    for name in ("base_location", "location"):
        backend.__dict__.pop(name, None)
    yield root
    assert before


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
