"""Rows for tests."""

from __future__ import annotations

from typing import Any

from django.utils import timezone
from factory.declarations import LazyAttribute, LazyFunction, Sequence, SubFactory
from factory.django import DjangoModelFactory
from factory.faker import Faker
from factory.helpers import post_generation

from datasets.models import Dataset, DatasetClass, Sample
from inference.models import InferenceResult
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


def end_of(row: Any) -> Any:
    """Ended rows say when they ended."""
    return None if row.status in {"uploaded", "queued", "training", "running"} else timezone.now()


class DatasetFactory(DjangoModelFactory[Dataset]):
    class Meta:
        model = Dataset
        skip_postgeneration_save = True

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
            for value, name, color in ((0, "background", "#495057"), (255, "cell", "#f59f00")):
                DatasetClass.objects.create(dataset=self, value=value, name=name, color=color)


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

    name = Sequence(lambda n: f"model {n}")
    dataset = SubFactory(DatasetFactory)
    status = "queued"
    finished_at = LazyAttribute(end_of)


class CompletedModelFactory(ModelFactory):
    status = "completed"
    s3_key = "models/x/model.zip"
    checksum = "0" * 64
    trained_at = LazyFunction(timezone.now)
    classes = [
        {"value": 0, "name": "background", "color": "#495057"},
        {"value": 255, "name": "cell", "color": "#f59f00"},
    ]


class InferenceFactory(DjangoModelFactory[InferenceResult]):
    class Meta:
        model = InferenceResult

    model = SubFactory(CompletedModelFactory)
    status = "queued"
    finished_at = LazyAttribute(end_of)
    image_name = "image.png"
