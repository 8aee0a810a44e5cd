"""One platform for all end-to-end tests that need no other storage or database, and a trained model on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e import drawings
from tests.platform import Json, Platform, running_platform


@pytest.fixture(scope="session")
def platform() -> Iterator[Platform]:
    with running_platform(MEDSEG_URL_IMPORT_ALLOW_PRIVATE="1") as platform:
        yield platform


@pytest.fixture(scope="session")
def dataset(platform: Platform) -> Json:
    return platform.upload("Discs", drawings.png_dataset())


@pytest.fixture(scope="session")
def model(platform: Platform, dataset: Json) -> Json:
    return platform.train("Discs", dataset, **drawings.QUICK)
