"""A platform whose dead are noticed after ten seconds, and what an undisturbed training on it gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e import drawings
from tests.platform import Json, Platform, running_platform

QUICKLY = {"MEDSEG_STALE_SECONDS": "10", "MEDSEG_CHECKPOINT_SECONDS": "2"}
EPOCHS = 12
TRAINING = {**drawings.QUICK, "epochs": EPOCHS, "learning_rate": 0.01}  # long enough to be killed in its middle


@dataclass(frozen=True)
class Stage:
    """Where the faults play. `model` was trained undisturbed; `mask` is what it answers for picture 300."""

    platform: Platform
    dataset: Json
    model: Json
    mask: bytes


@pytest.fixture(scope="package")
def stage() -> Iterator[Stage]:
    with running_platform(**QUICKLY) as platform:
        yield set_up(platform)


def set_up(platform: Platform) -> Stage:
    dataset = platform.upload("Undisturbed", drawings.png_dataset(12, faint=True))
    model = platform.train("Undisturbed", dataset, **TRAINING)
    assert model["status"] == "completed", model["error"]
    result = platform.infer(model, "300.png", drawings.png(drawings.disc(300, faint=True)[0]))
    mask = platform.request("GET", f"inferences/{result['id']}/mask/").content
    return Stage(platform, dataset, model, mask)
