"""Storage of both kinds for the tests of this folder, and a catalogue with something of everything in it."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from moto.server import ThreadedMotoServer
from rest_framework.test import APIClient

from datasets.check import check
from datasets.models import Dataset
from datasets.services import create_dataset_from_upload, delete_dataset, rename_class
from inference import batches, prediction
from inference.models import InferenceBatch, InferenceResult
from inference.services import create_batch, create_inference
from medseg_site.demo import draw_cells, png
from medseg_site.shared.jobs import claim
from ml_core.dataset.classes import LabelClass
from ml_core.dataset.fingerprint import FingerprintBuilder
from ml_core.dataset.splits import StoredSplit
from ml_core.io import read_image
from ml_core.measures.results import Metrics
from ml_core.networks.catalogue import build
from ml_core.planning.plan import Machine
from ml_core.planning.request import TrainingRequest
from ml_core.planning.rules import make_plan
from ml_core.prediction.decisions import Decisions
from ml_core.prediction.package import Package, write_package
from ml_core.training.events import Done
from models_app import training
from models_app.models import Epoch, SegmentationModel
from models_app.services import cancel_model, create_model
from tests.pages import METRICS

BUCKET = "medseg-unit"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_media(s3_endpoint: str, settings: Any, own_media: Path, tmp_path: Path) -> Iterator[Any]:
    """Objects in an empty bucket of moto's server, and an empty cache of them."""
    access = {"endpoint_url": s3_endpoint, "region_name": "us-east-1"}
    bucket = boto3.resource("s3", aws_access_key_id="t", aws_secret_access_key="t", **access).create_bucket(
        Bucket=BUCKET
    )
    options: dict[str, Any] = {
        "bucket_name": BUCKET,
        "access_key": "t",
        "secret_key": "t",
        "addressing_style": "path",
        **access,
    }
    options |= {"signature_version": "s3v4", "file_overwrite": True, "default_acl": None, "querystring_auth": True}
    settings.S3_BUCKET_NAME, settings.AWS_ENDPOINT_URL, settings.CACHE_DIR = BUCKET, s3_endpoint, tmp_path / "cache"
    settings.AWS_ACCESS_KEY_ID = settings.AWS_SECRET_ACCESS_KEY = "t"
    default = {"BACKEND": "storages.backends.s3.S3Storage", "OPTIONS": options}
    settings.STORAGES = {**settings.STORAGES, "default": default}
    yield bucket
    bucket.objects.delete()
    bucket.delete()


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def media(request: pytest.FixtureRequest, own_media: Path) -> str:
    """Either storage, by its name."""
    if request.param == "s3":
        request.getfixturevalue("s3_media")
    return str(request.param)


@dataclass(frozen=True)
class Filled:
    """Rows in every state that a platform at rest has, and some that are being worked on."""

    ready: Dataset
    refused: Dataset
    completed: SegmentationModel
    orphaned: SegmentationModel  # its dataset was deleted
    working: SegmentationModel
    queued: InferenceResult
    batch: InferenceBatch


@pytest.fixture
def filled(transactional_db: None, user: Any, media: str, package: Any, tmp_path: Path) -> Filled:
    ready, gone = dataset(user, "cells", 4), dataset(user, "to be deleted", 3)
    rename_class(user=user, dataset=ready, value=255, name="nucleus", color="#12abcd")
    completed, orphaned = (trained(user, name, of, package, tmp_path) for name, of in (("net", ready), ("old", gone)))
    delete_dataset(user=user, dataset=gone)
    cancel_model(user=user, model=create_model(user=user, name="net", dataset=ready, hyperparameters={}))
    working = create_model(user=user, name="net", dataset=ready, hyperparameters={"epochs": 3})
    assert claim.claim(SegmentationModel, working.pk)
    for name, mask in (("one.png", None), ("two.png", SimpleUploadedFile("ref.png", png(cell(9)[1])))):
        image = SimpleUploadedFile(name, png(cell(9)[0]))
        prediction.predict(create_inference(user=user, model=completed, image=image, mask=mask).pk)
    prediction.predict(
        create_inference(user=user, model=completed, image=SimpleUploadedFile("no.png", b"no picture")).pk
    )
    batch = create_batch(
        user=user, model=completed, archive=zipped({"1/a.png": png(cell(1)[0]), "2/ü.png": png(cell(2)[0])})
    )
    assert batches.expand(batch.pk)
    for pk in batch.inferences.values_list("pk", flat=True):
        prediction.predict(pk)
    queued = create_inference(user=user, model=completed, image=SimpleUploadedFile("later.png", png(cell(3)[0])))
    return Filled(ready, dataset(user, "too little", 1), completed, orphaned, working, queued, batch)


def cell(seed: int) -> tuple[Any, Any]:
    image, labels = draw_cells(np.random.default_rng(seed))
    return image[:64, :64], (labels[:64, :64] > 0).astype(np.uint8) * 255


def zipped(files: dict[str, bytes]) -> SimpleUploadedFile:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return SimpleUploadedFile("set.zip", buffer.getvalue())


def dataset(user: Any, name: str, pairs: int) -> Dataset:
    """Uploaded and checked."""
    drawn = [(f"c{index}.png", *cell(index)) for index in range(pairs)]
    files = {f"images/{file}": png(image) for file, image, _ in drawn}
    files |= {f"masks/{file}": png(labels) for file, _, labels in drawn}
    row = create_dataset_from_upload(user=user, name=name, archive=zipped(files), description=f"{name}, drawn")
    check(row.pk)
    row.refresh_from_db()
    return row


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A model's package with the weights that a network begins with, and its plan. Made once: the worker then keeps it warm."""
    folder = tmp_path_factory.mktemp("package")
    builder = FingerprintBuilder()
    image, labels = cell(0)
    (folder / "image.png").write_bytes(png(image))
    builder.add(read_image(folder / "image.png"), labels, {0: int((labels == 0).sum()), 255: int((labels > 0).sum())})
    wanted = TrainingRequest.from_json({"architecture": "unet", "encoder": "mobilenet_v2"})
    classes: list[LabelClass] = [
        {"value": 0, "name": "ground", "color": "#000000"},
        {"value": 255, "name": "cell", "color": "#ff0000"},
    ]
    plan = make_plan(wanted, builder.result(), classes, Machine(False, 2, False))
    network, _ = build("unet", encoder="mobilenet_v2", channels=1, classes=2)
    write_package(folder / "model.zip", Package(plan, [network.state_dict()], None, StoredSplit(), {}))
    return folder / "model.zip", plan.to_json()


def trained(user: Any, name: str, of: Dataset, package: tuple[Path, dict[str, Any]], folder: Path) -> SegmentationModel:
    """What the worker keeps of a training is real, the training itself is left out."""
    row = create_model(user=user, name=name, dataset=of, hyperparameters={"architecture": "unet", "seed": 3})
    job = claim.claim(SegmentationModel, row.pk)
    assert job
    work = folder / name
    (work / "cases").mkdir(parents=True)
    sample = of.samples.order_by("?").first()
    assert sample
    (work / "cases" / f"{sample.pk}.png").write_bytes(png(cell(0)[0]))
    job.update(plan=package[1], split={"val": [sample.pk]}, estimate={"seconds": 1.5})
    for epoch in (1, 2):
        numbers = {"train_loss": 1 / 3, "val_loss": None, "val_dice": 0.1 + epoch, "learning_rate": 1e-3}
        Epoch.objects.create(model=row, epoch=epoch, seconds=0.7, images_per_second=3.3, **numbers)
    cases: Any = METRICS["per_case"]
    case = {**cases[0], "sample": sample.pk, "picture": True}
    metrics = Metrics.from_json({**METRICS, "per_case": [case]})
    training._keep(job, work, Done(False, str(package[0]), metrics, Decisions(), ["few"]))
    row.refresh_from_db()
    assert row.status == "completed"
    return row


@pytest.fixture
def answers(api: APIClient) -> Callable[[], dict[str, Any]]:
    """Everything that the API says of all rows: path → document."""

    def ask(path: str) -> Any:
        answer = api.get(path)
        assert answer.status_code == 200, (path, answer.content)
        return answer.json()

    def ask_all() -> dict[str, Any]:
        found: dict[str, Any] = {}
        below = {"datasets": ["samples"], "models": ["epochs"], "inferences": [], "inference-batches": []}
        for kind, children in below.items():
            path = f"/api/v1/{kind}/?page_size=500"
            found[path] = ask(path)
            assert found[path]["count"] == len(found[path]["results"]) > 0
            for row in found[path]["results"]:
                for child in ("", *(f"{child}/?page_size=500" for child in children)):
                    found[f"{kind}/{row['id']}/{child}"] = ask(f"/api/v1/{kind}/{row['id']}/{child}")
        return found

    return ask_all
