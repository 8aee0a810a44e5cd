"""The timeline and the log of a job."""

from __future__ import annotations

import logging

import pytest
from rest_framework.test import APIClient

from inference.models import InferenceResult
from medseg_site.shared.jobs.claim import claim as claim_row
from medseg_site.shared.jobs.log import MAX_LINES, JobLog
from medseg_site.shared.jobs.requests import request_cancel, requeue
from medseg_site.shared.jobs.row import Job
from models_app.models import SegmentationModel
from tests.factories import InferenceFactory, ModelFactory

pytestmark = pytest.mark.django_db


def events(row: Job) -> list[str]:
    row.refresh_from_db()
    return [entry["event"] for entry in row.timeline]


def test_the_timeline_tells_who_had_it_and_how_it_ended() -> None:
    row = InferenceFactory.create()
    claim = claim_row(InferenceResult, row.pk)
    assert claim
    claim.note("note", "half the batch")
    request_cancel(row)
    request_cancel(row)  # a second press says nothing new
    claim.fail("The file is no image.")
    assert events(row) == ["queued", "claimed", "note", "cancel requested", "failed"]
    assert row.timeline[1]["worker"]
    assert row.timeline[2]["detail"] == "half the batch"
    assert row.timeline[-1]["detail"] == "The file is no image."
    requeue(row)
    assert events(row)[-1] == "queued"


def test_an_attempt_whose_process_was_killed_is_followed_by_two_more() -> None:
    model = ModelFactory.create()
    for attempt in (1, 2, 3):
        claim = claim_row(SegmentationModel, model.pk)
        assert claim
        claim.end_attempt("Killed (SIGKILL).")
        model.refresh_from_db()
        assert (model.status == "queued") is (attempt < 3)
    assert events(model) == ["queued", "claimed", "worker lost", "claimed", "worker lost", "claimed", "failed"]
    assert (model.status, model.error) == ("failed", "Killed (SIGKILL).")


def test_a_killed_attempt_of_a_job_that_was_to_be_cancelled_ends_it() -> None:
    model = ModelFactory.create()
    claim = claim_row(SegmentationModel, model.pk)
    assert claim
    request_cancel(model)
    claim.end_attempt("Killed.")
    assert events(model)[-1] == "cancelled"
    assert model.status == "cancelled"


def test_the_log_keeps_what_all_attempts_said_and_can_be_downloaded(api: APIClient) -> None:
    model = ModelFactory.create()
    logger = logging.getLogger("models_app.training")
    first = claim_row(SegmentationModel, model.pk)
    assert first
    logger.info("first words\nin two lines")
    logging.getLogger("celery.worker").warning("not ours")
    first.beat(force=True)
    model.refresh_from_db()
    assert "first words" in model.log
    first.end_attempt("Killed.")
    logger.info("between two attempts")
    second = claim_row(SegmentationModel, model.pk)
    assert second
    try:
        raise ValueError("of a library")
    except ValueError:
        logger.exception("something broke")
    second.fail("It broke.")
    logger.info("afterwards")
    answer = api.get(f"/api/v1/models/{model.pk}/log/")
    assert answer["Content-Disposition"].endswith(f'"model-{model.pk}.log"')
    text = answer.content.decode()
    for words in ("first words", "INFO    in two lines", "Killed.", "something broke", "ValueError: of a library"):
        assert words in text
    for words in ("not ours", "between two attempts", "afterwards"):
        assert words not in text


def test_only_the_last_lines_are_kept() -> None:
    log = JobLog("")
    for number in range(MAX_LINES + 5):
        log.add(f"line {number}")
    lines = log.text().splitlines()
    assert len(lines) == MAX_LINES
    assert lines[0].endswith("line 5")
