"""Rows for tests."""

from __future__ import annotations

from typing import Any

from django.utils import timezone
from factory.declarations import LazyAttribute, LazyFunction, Sequence, SubFactory
from factory.django import DjangoModelFactory
from factory.faker import Faker
from factory.helpers import post_generation

from accounts.models import Project
from accounts.services import personal_project
from datasets.models import Dataset, DatasetClass, Sample
from inference.models import InferenceBatch, InferenceResult
from medseg_site.shared.base.local_user import local_user
from ml_core.dataset.classes import LabelClass
from ml_core.dataset.fingerprint import Fingerprint
from ml_core.planning.plan import Machine, Plan
from ml_core.planning.request import TrainingRequest
from ml_core.planning.rules import make_plan
from models_app.models import SegmentationModel

FINGERPRINT = {
    "n_cases": 4,
    "dimensions": 2,
    "channels": 1,
    "modality": "greyscale",
    "families": {"raster": 4},
    "pose": None,
    "shape": {"minimum": [32, 32], "median": [32, 32], "maximum": [32, 32]},
    "spacing": None,
    "intensity": {"low": 0.0, "high": 255.0, "minimum": 0.0, "maximum": 255.0, "mean": 90.0, "std": 40.0},
    "foreground_intensity": {"p005": 60.0, "p995": 240.0, "mean": 150.0, "std": 30.0},
    "classes": [
        {
            "value": 0,
            "pixels": 3000,
            "share": 0.75,
            "cases": 4,
            "component_pixels": 750.0,
            "thickness": 0.0,
            "thin_part": 0.0,
            "clipped": 0.0,
        },
        {
            "value": 255,
            "pixels": 1000,
            "share": 0.25,
            "cases": 4,
            "component_pixels": 50.0,
            "thickness": 0.0,
            "thin_part": 0.0,
            "clipped": 0.0,
        },
    ],
    "grouping": "file",
    "mask_codes": {},
}


CLASSES: list[LabelClass] = [
    {"value": 0, "name": "background", "color": "#495057"},
    {"value": 255, "name": "cell", "color": "#f59f00"},
]


def plan_of(**wanted: Any) -> Plan:
    """For a dataset of DatasetFactory on a laptop."""
    laptop = Machine(cuda=False, cpus=2, bf16=True)
    return make_plan(TrainingRequest.from_json(wanted), Fingerprint.from_json(FINGERPRINT), CLASSES, laptop)


def end_of(row: Any) -> Any:
    """Ended rows say when they ended."""
    return None if row.status in {"uploaded", "queued", "training", "running"} else timezone.now()


def project_of(row: Any = None) -> Project:
    """The personal project of who made the row, or of the single user."""
    return personal_project((row and row.created_by) or local_user())


class DatasetFactory(DjangoModelFactory[Dataset]):
    class Meta:
        model = Dataset
        skip_postgeneration_save = True

    created_by = None
    project = LazyAttribute(project_of)
    name = Sequence(lambda n: f"dataset {n}")
    status = "ready"
    finished_at = LazyAttribute(end_of)
    s3_key = LazyAttribute(lambda row: f"datasets/{row.uuid}/archive.zip")
    uuid = Faker("uuid4", cast_to=None)
    file_count = 4
    dimensions = 2
    channels = 1
    modality = "greyscale"
    fingerprint = FINGERPRINT

    @post_generation  # type: ignore[untyped-decorator]  # factory_boy has no types
    def with_classes(self: Any, create: bool, extracted: Any, **kwargs: Any) -> None:
        if create:
            for item in CLASSES:
                DatasetClass.objects.create(dataset=self, **item)


class SampleFactory(DjangoModelFactory[Sample]):
    class Meta:
        model = Sample

    dataset = SubFactory(DatasetFactory)
    position = Sequence(lambda n: n)
    name = Sequence(lambda n: f"case_{n:03d}")
    split = "train"
    shape = [32, 32]
    image_key = LazyAttribute(lambda row: f"datasets/{row.dataset.uuid}/samples/{row.position}/image.png")
    mask_key = LazyAttribute(lambda row: f"datasets/{row.dataset.uuid}/samples/{row.position}/mask.png")
    thumbnail_key = LazyAttribute(lambda row: f"datasets/{row.dataset.uuid}/samples/{row.position}/thumbnail.jpg")


class ModelFactory(DjangoModelFactory[SegmentationModel]):
    class Meta:
        model = SegmentationModel

    created_by = None
    project = LazyAttribute(project_of)
    name = Sequence(lambda n: f"model {n}")
    dataset = SubFactory(DatasetFactory)
    status = "queued"
    finished_at = LazyAttribute(end_of)


class CompletedModelFactory(ModelFactory):
    status = "completed"
    s3_key = "models/x/model.zip"
    checksum = "0" * 64
    trained_at = LazyFunction(timezone.now)
    classes = CLASSES


class InferenceFactory(DjangoModelFactory[InferenceResult]):
    class Meta:
        model = InferenceResult

    created_by = None
    project = LazyAttribute(project_of)
    model = SubFactory(CompletedModelFactory)
    status = "queued"
    finished_at = LazyAttribute(end_of)
    image_name = "image.png"


class InferenceBatchFactory(DjangoModelFactory[InferenceBatch]):
    class Meta:
        model = InferenceBatch

    created_by = None
    project = LazyAttribute(project_of)
    model = SubFactory(CompletedModelFactory)
    status = "queued"
    archive_name = "a.zip"
