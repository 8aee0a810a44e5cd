"""A model package made here (untrained: shapes matter)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg_site.demo import draw_cells, png
from medseg_site.shared.storage import objects as storage
from ml_core.dataset.classes import LabelClass
from ml_core.dataset.fingerprint import FingerprintBuilder
from ml_core.dataset.splits import StoredSplit
from ml_core.io import read_image
from ml_core.networks.catalogue import build
from ml_core.planning.plan import Machine
from ml_core.planning.request import TrainingRequest
from ml_core.planning.rules import make_plan
from ml_core.prediction.package import Package, write_package
from models_app.models import SegmentationModel
from tests.factories import CompletedModelFactory, DatasetFactory

CLASSES: list[LabelClass] = [
    {"value": 0, "name": "background", "color": "#000000"},
    {"value": 255, "name": "cell", "color": "#ff0000"},
]


@pytest.fixture
def model(tmp_path: Path, own_media: Path) -> SegmentationModel:
    path = tmp_path / "drawn.png"
    path.write_bytes(png(draw_cells(np.random.default_rng(0))[0]))
    builder = FingerprintBuilder()
    builder.add(read_image(path), np.eye(160, dtype=int) * 255, {0: 160 * 159, 255: 160})
    wanted = TrainingRequest.from_json({"architecture": "unet", "encoder": "mobilenet_v2"})
    plan = make_plan(wanted, builder.result(), CLASSES, Machine(False, 2, False))
    network, _ = build("unet", encoder="mobilenet_v2", channels=1, classes=2)
    write_package(tmp_path / "model.zip", Package(plan, [network.state_dict()], None, StoredSplit(), {}))
    dataset = DatasetFactory.create()
    stored = storage.store_file(f"models/{tmp_path.name}/model.zip", tmp_path / "model.zip")
    return CompletedModelFactory.create(dataset=dataset, classes=CLASSES, s3_key=stored.key, checksum=stored.sha256)
