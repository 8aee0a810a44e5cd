"""What the tests of the pages share: rows in the states that pages show, and words to look for."""

from __future__ import annotations

from typing import Any

from django.contrib.messages import get_messages
from django.test import Client

from inference.models import InferenceBatch, InferenceResult
from tests.factories import (
    CompletedModelFactory,
    InferenceFactory,
)

HTMX = {"HX-Request": "true"}
NOTICE = "Research use only, not a medical device"
LISTS = [
    "home",
    "datasets:list",
    "datasets:upload",
    "models_app:list",
    "models_app:create",
    "inference:list",
    "inference:create",
]
METRICS = {
    "dice": 0.875,
    "iou": 0.7,
    "precision": 0.9,
    "recall": 0.8,
    "hd95": None,
    "nsd": 0.6,
    "ci95": {"dice": [0.8125, 0.9375], "hd95": None},
    "n_cases": 2,
    "misses": 1,
    "evaluated_on": "test",
    "unit": "mm",
    "per_class": [
        {
            "value": 255,
            "name": "cell",
            "color": "#f59f00",
            "dice": 0.5,
            "hd95": None,
            "n_cases": 1,
            "undefined": 1,
            "misses": 1,
        }
    ],
    "per_case": [
        {"name": "good one", "sample": 1, "dice": 0.99, "picture": True},
        {"name": "bad one", "sample": 2, "dice": 0.11, "picture": True},
        {"name": "unseen one", "sample": 3, "dice": 0.01, "picture": False},
        {"name": "undefined one", "sample": 4, "dice": None, "picture": True},
    ],
}
CLASSES = [
    {"value": 0, "name": "background", "color": "#495057", "pixels": 1000, "fraction": 0.9, "volume_ml": None},
    {"value": 255, "name": "cell", "color": "#f59f00", "pixels": 111, "fraction": 0.1, "volume_ml": 1.5},
]


def text(client: Client, url: str, **headers: Any) -> str:
    answer = client.get(url, **headers)
    assert answer.status_code == 200, (url, answer.status_code)
    return answer.content.decode()


def completed_inference(**columns: Any) -> InferenceResult:
    row: InferenceResult = InferenceFactory.create(
        status="completed",
        output_image_s3_key="x/y.png",
        output_sha256="0" * 64,
        shape=[8, 9],
        classes=CLASSES,
        **columns,
    )
    return row


def batch(**columns: Any) -> InferenceBatch:
    given = {"status": "queued", "archive_name": "images.zip", "model": CompletedModelFactory.create(), **columns}
    return InferenceBatch.objects.create(**given)


def said(answer: Any) -> list[str]:
    return [str(message) for message in get_messages(answer.wsgi_request)]
