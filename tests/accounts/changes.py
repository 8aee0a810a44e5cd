"""Every service that changes a row, with the right that it asks for and the audit event that it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile

from accounts.models import Project
from datasets import services as datasets
from inference import services as inferences
from medseg_site.demo import png
from medseg_site.shared.base.local_user import local_user
from models_app import services as trainings
from tests.factories import CompletedModelFactory, DatasetFactory, InferenceFactory, ModelFactory
from tests.pages import batch
from uploads import services as uploads
from uploads.models import Upload


def picture() -> SimpleUploadedFile:
    return SimpleUploadedFile("a.png", png(np.zeros((8, 8), np.uint8)))


def archive() -> SimpleUploadedFile:
    return SimpleUploadedFile("a.zip", b"PK\x05\x06" + bytes(18))


def upload(project: Project) -> Upload:
    return Upload.objects.create(project=project, purpose="dataset", file_name="a.zip", size=9, part_size=9)


def whole_upload(project: Project) -> Upload:
    """An upload that has arrived."""
    content = archive()
    row = uploads.create_upload(user=local_user(), file_name="a.zip", size=content.size or 0, purpose="dataset")
    uploads.put_part(upload=row, number=1, source=content, length="")
    Upload.objects.filter(pk=row.pk).update(project=project)
    return uploads.complete_upload(upload=row)


@dataclass(frozen=True)
class Change:
    """`make` makes the row in a project, `do` changes it; `act` is empty where no event is left."""

    make: Callable[[Project], Any]
    do: Callable[[User, Any], object]
    act: str


def _made_by(factory: Any, **columns: Any) -> Callable[[Project], Any]:
    return lambda project: factory.create(project=project, **columns)


DATASET, MODEL = _made_by(DatasetFactory), _made_by(CompletedModelFactory)
INFERENCE, BATCH = _made_by(InferenceFactory), lambda project: batch(project=project)
FAILED = {"status": "failed", "error": "why"}

CHANGES = {
    "make a version": Change(
        DATASET, lambda user, row: datasets.create_version(user=user, base=row, archive=archive()), "upload"
    ),
    "use an upload": Change(
        whole_upload,
        lambda user, row: datasets.create_dataset_from_parts(user=user, name="x", upload=row.uuid),
        "upload",
    ),
    "rename a class": Change(
        DATASET, lambda user, row: datasets.rename_class(user=user, dataset=row, value=0, name="x"), ""
    ),
    "check again": Change(
        _made_by(DatasetFactory, status="error", error="why"),
        lambda user, row: datasets.recheck_dataset(user=user, dataset=row),
        "resume",
    ),
    "cancel a check": Change(
        _made_by(DatasetFactory, status="uploaded"),
        lambda user, row: datasets.cancel_dataset(user=user, dataset=row),
        "cancel",
    ),
    "delete a dataset": Change(DATASET, lambda user, row: datasets.delete_dataset(user=user, dataset=row), "delete"),
    "train": Change(
        DATASET,
        lambda user, row: trainings.create_model(user=user, name="net", dataset=row, hyperparameters={}),
        "train",
    ),
    "cancel a training": Change(
        _made_by(ModelFactory), lambda user, row: trainings.cancel_model(user=user, model=row), "cancel"
    ),
    "resume a training": Change(
        _made_by(ModelFactory, **FAILED), lambda user, row: trainings.resume_model(user=user, model=row), "resume"
    ),
    "delete a model": Change(MODEL, lambda user, row: trainings.delete_model(user=user, model=row), "delete"),
    "segment": Change(
        MODEL, lambda user, row: inferences.create_inference(user=user, model=row, image=picture()), "segment"
    ),
    "segment a batch": Change(
        MODEL, lambda user, row: inferences.create_batch(user=user, model=row, archive=archive()), "segment"
    ),
    "cancel an inference": Change(
        INFERENCE, lambda user, row: inferences.cancel_inference(user=user, inference=row), "cancel"
    ),
    "try again": Change(
        _made_by(InferenceFactory, **FAILED),
        lambda user, row: inferences.retry_inference(user=user, inference=row),
        "resume",
    ),
    "delete an inference": Change(
        INFERENCE, lambda user, row: inferences.delete_inference(user=user, inference=row), "delete"
    ),
    "cancel a batch": Change(BATCH, lambda user, row: inferences.cancel_batch(user=user, batch=row), "cancel"),
    "delete a batch": Change(BATCH, lambda user, row: inferences.delete_batch(user=user, batch=row), "delete"),
    "stop an upload": Change(upload, lambda user, row: uploads.abort_upload(user=user, upload=row), "cancel"),
}
