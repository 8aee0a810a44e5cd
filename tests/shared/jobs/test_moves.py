"""The database itself refuses a move that no job makes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from datasets.models import Dataset
from inference.models import InferenceResult
from medseg_site.shared.jobs.moves import moves
from models_app.models import SegmentationModel
from tests.factories import CompletedModelFactory, DatasetFactory, InferenceFactory, ModelFactory

pytestmark = pytest.mark.django_db

RESULTS: dict[type, dict[str, Any]] = {
    Dataset: {"ready": {}, "error": {"error": "why"}},
    SegmentationModel: {
        "completed": {"s3_key": "k", "checksum": "c", "trained_at": timezone.now()},
        "failed": {"error": "why"},
    },
    InferenceResult: {"completed": {"output_image_s3_key": "k", "output_sha256": "c"}, "failed": {"error": "why"}},
}
FACTORIES: dict[type, Any] = {
    Dataset: DatasetFactory,
    SegmentationModel: ModelFactory,
    InferenceResult: InferenceFactory,
}


@pytest.mark.parametrize("model", FACTORIES)
def test_only_the_moves_of_a_jobs_life_are_possible(model: Any) -> None:
    words = model.WORDS
    for old, new in itertools.permutations(words.all(), 2):
        row = FACTORIES[model].create(status=old, **RESULTS[model].get(old, {}))
        ended = {"finished_at": None if new in {words.queued, words.working} else timezone.now()}
        change = {"status": new, "error": None, **ended, **RESULTS[model].get(new, {})}
        move = model.objects.filter(pk=row.pk).update
        if (old, new) in moves(words):
            move(**change)
            continue
        with pytest.raises(IntegrityError, match="illegal move"), transaction.atomic():
            move(**change)


def test_what_is_done_stays_done() -> None:
    row = CompletedModelFactory.create()
    with pytest.raises(IntegrityError), transaction.atomic():
        SegmentationModel.objects.filter(pk=row.pk).update(status="queued", finished_at=None)
