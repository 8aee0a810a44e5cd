"""The one life of every job: who may do what, and what a death leaves behind."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from datasets.models import Dataset
from medseg_site.shared.base.errors import WrongStateError
from medseg_site.shared.jobs import claim, endings, reaper
from medseg_site.shared.jobs.requests import request_cancel, requeue
from models_app.models import SegmentationModel
from tests.factories import CompletedModelFactory, DatasetFactory, ModelFactory

pytestmark = pytest.mark.django_db


def make_stale(row: Any) -> None:
    past = timezone.now() - timedelta(seconds=reaper.STALE_SECONDS + 5)
    type(row).objects.filter(pk=row.pk).update(heartbeat_at=past)


def test_only_one_worker_gets_a_row() -> None:
    model = ModelFactory.create()
    first = claim.claim(SegmentationModel, model.pk)
    assert first is not None
    assert claim.claim(SegmentationModel, model.pk) is None
    model.refresh_from_db()
    assert (model.status, model.attempt) == ("training", 1)


def test_queued_and_working_may_share_a_word() -> None:
    dataset = DatasetFactory.create(status="uploaded")
    assert claim.claim(Dataset, dataset.pk) is not None
    assert claim.claim(Dataset, dataset.pk) is None
    dataset.refresh_from_db()
    assert dataset.status == "uploaded"
    assert dataset.is_working


def test_finish_of_a_lost_claim_rolls_everything_back() -> None:
    model = ModelFactory.create()
    job = claim.claim(SegmentationModel, model.pk)
    assert job
    SegmentationModel.objects.filter(pk=model.pk).update(claim_token="00000000-0000-0000-0000-000000000001")

    def write_results() -> None:
        with transaction.atomic():
            ModelFactory.create(name="written beside the result")
            job.finish(s3_key="k", checksum="c", trained_at=timezone.now())

    with pytest.raises(claim.ClaimLostError):
        write_results()
    assert not SegmentationModel.objects.filter(name="written beside the result").exists()


def test_beat_tells_of_a_cancel_wish_and_of_a_deleted_row() -> None:
    model = ModelFactory.create()
    job = claim.claim(SegmentationModel, model.pk)
    assert job
    job.beat({"step": 1}, force=True)
    model.refresh_from_db()
    assert model.progress == {"step": 1}
    request_cancel(model)
    with pytest.raises(claim.CancelledError):
        job.beat(force=True)
    model.delete()
    with pytest.raises(claim.ClaimLostError):
        job.beat(force=True)


def test_cancel_of_a_queued_row_is_immediate_and_of_an_ended_one_an_error() -> None:
    model = ModelFactory.create()
    request_cancel(model)
    assert model.status == "cancelled"
    with pytest.raises(WrongStateError):
        request_cancel(model)


def test_requeue_only_what_has_ended() -> None:
    model = ModelFactory.create(status="failed", error="because")
    requeue(model)
    assert (model.status, model.error, model.attempt) == ("queued", None, 0)
    with pytest.raises(WrongStateError):
        requeue(CompletedModelFactory.create())


def test_reaper_gives_back_then_fails_with_the_reason(sent: list[int]) -> None:
    model = ModelFactory.create()
    for attempt in range(1, endings.MAX_ATTEMPTS + 1):
        assert claim.claim(SegmentationModel, model.pk)
        make_stale(model)
        reaper.reap(SegmentationModel)
        model.refresh_from_db()
        assert model.attempt == attempt
    assert sent == [model.pk] * (endings.MAX_ATTEMPTS - 1)
    assert model.status == "failed"
    assert "died 3 times" in str(model.error)


def test_reaper_leaves_living_rows_alone_and_ends_cancelled_ones(sent: list[int]) -> None:
    living, dying = ModelFactory.create(), ModelFactory.create()
    for row in (living, dying):
        assert claim.claim(SegmentationModel, row.pk)
    request_cancel(dying)
    make_stale(dying)
    reaper.reap(SegmentationModel)
    living.refresh_from_db()
    dying.refresh_from_db()
    assert (living.status, dying.status, sent) == ("training", "cancelled", [])
    assert dying.cancelled_at
    assert not living.cancelled_at


def test_reaper_sends_a_lost_message_again_once(sent: list[int]) -> None:
    model = ModelFactory.create()
    past = timezone.now() - timedelta(seconds=reaper.LOST_MESSAGE_SECONDS + 5)
    SegmentationModel.objects.filter(pk=model.pk).update(due_at=past, sent_at=past)
    reaper.reap(SegmentationModel)
    reaper.reap(SegmentationModel)
    assert sent == [model.pk]


class Clock:
    """A time that the test sets."""

    def __init__(self) -> None:
        self.now = timezone.now()

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timezone, "now", lambda: made.now)
    return made


@pytest.mark.slow
def test_a_day_without_a_worker_is_few_messages_and_a_fresh_row_waits_two_minutes(
    clock: Clock, sent: list[int]
) -> None:
    old = ModelFactory.create()
    times: list[float] = []
    start = clock.now
    while clock.now < start + timedelta(hours=24):
        clock.wait(60)
        before = len(sent)
        reaper.reap(SegmentationModel)
        times += [(clock.now - start).total_seconds()] * (len(sent) - before)
    for earlier, later in pairwise([0.0, *times]):
        least = min(reaper.MAX_RESEND_SECONDS, max(reaper.LOST_MESSAGE_SECONDS, earlier))
        # The row was made some milliseconds after the clock was read.
        assert least - 1 < later - earlier <= least + 60, "doubling, and up to one pass more"
    assert 24 < len(times) < 32
    fresh = ModelFactory.create()
    sent.clear()
    clock.wait(reaper.LOST_MESSAGE_SECONDS + 1)
    reaper.reap(SegmentationModel)
    assert fresh.pk in sent
    request_cancel(old)
    requeue(old)  # which begins anew
    sent.clear()
    clock.wait(reaper.LOST_MESSAGE_SECONDS + 1)
    reaper.reap(SegmentationModel)
    assert old.pk in sent


def test_one_pass_sends_the_oldest_rows_only(clock: Clock, sent: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "MAX_RESENT", 2)
    rows = [ModelFactory.create() for _ in range(5)]
    for age, row in enumerate(rows):
        past = clock.now - timedelta(seconds=reaper.LOST_MESSAGE_SECONDS + 5 + age)
        SegmentationModel.objects.filter(pk=row.pk).update(due_at=past, sent_at=past)
    passes: list[list[int]] = []
    for _ in range(4):
        sent.clear()
        reaper.reap(SegmentationModel)
        passes.append(list(sent))
    keys = [row.pk for row in rows]
    assert passes == [[keys[4], keys[3]], [keys[2], keys[1]], [keys[0]], []]


@pytest.mark.parametrize(
    "columns",
    [
        {"status": "failed", "error": None},
        {"status": "failed", "error": ""},
        {"status": "completed", "s3_key": ""},
        {"status": "half trained"},
        {"status": "queued", "claim_token": "00000000-0000-0000-0000-000000000001"},
    ],
)
def test_the_database_refuses_rows_that_contradict_themselves(columns: dict[str, Any]) -> None:
    model = ModelFactory.create()
    with pytest.raises(IntegrityError), transaction.atomic():
        SegmentationModel.objects.filter(pk=model.pk).update(**columns)


def interrupt(model: Any) -> float | None:
    """Claim the row and meet an outage. Seconds of the pause that follows; None where the row has ended."""
    job = claim.claim(SegmentationModel, model.pk)
    assert job
    job.retry_later("Storage is away.")
    return pause_of(model)


def pause_of(model: Any) -> float | None:
    model.refresh_from_db()
    if model.status != "queued":
        return None
    assert model.sent_at is None, "the reaper sends the message"
    return float(round((model.due_at - timezone.now()).total_seconds()))


def end_pause(model: Any) -> None:
    SegmentationModel.objects.filter(pk=model.pk).update(due_at=timezone.now())


def test_interruptions_before_somebody_started_it_again_do_not_count() -> None:
    model = ModelFactory.create()
    for _ in range(claim.MAX_INTERRUPTIONS):
        assert interrupt(model) is not None
        end_pause(model)
    assert interrupt(model) is None
    assert model.status == "failed"
    requeue(model)
    assert interrupt(model) == 5.0


@pytest.mark.parametrize("interruptions", [0, claim.MAX_INTERRUPTIONS])
def test_a_cancel_that_meets_an_outage_ends_the_job(interruptions: int) -> None:
    model = ModelFactory.create()
    for _ in range(interruptions):
        assert interrupt(model) is not None
        end_pause(model)
    job = claim.claim(SegmentationModel, model.pk)
    assert job
    request_cancel(model)
    job.retry_later("Storage is away.")
    model.refresh_from_db()
    assert (model.status, model.error, model.claim_token) == ("cancelled", None, None)
    assert model.timeline[-1]["event"] == "cancelled"


def test_a_cancel_of_the_last_moment_before_the_pause_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelFactory.create()
    job = claim.claim(SegmentationModel, model.pk)
    assert job
    look, looks = job._cancelled_where_wished, []

    def and_then_somebody_cancels() -> bool:
        looks.append(look())
        if len(looks) == 1:
            request_cancel(model)
        return looks[-1]

    monkeypatch.setattr(job, "_cancelled_where_wished", and_then_somebody_cancels)
    job.retry_later("Storage is away.")
    model.refresh_from_db()
    assert (model.status, looks) == ("cancelled", [False, True])


def test_a_second_message_does_not_cut_a_pause_short() -> None:
    model = ModelFactory.create()
    assert interrupt(model) == 5.0
    assert claim.claim(SegmentationModel, model.pk) is None
    end_pause(model)
    assert claim.claim(SegmentationModel, model.pk) is not None


def test_the_reaper_alone_sends_the_message_after_a_pause(sent: list[int]) -> None:
    model = ModelFactory.create()
    assert interrupt(model) == 5.0
    reaper.reap(SegmentationModel)
    assert sent == []
    end_pause(model)
    reaper.reap(SegmentationModel)
    reaper.reap(SegmentationModel)
    assert sent == [model.pk]
    model.refresh_from_db()
    assert model.timeline[-1]["event"] == "sent again"


def test_a_pause_is_over_when_the_message_is_sent_by_whichever_clock(sent: list[int]) -> None:
    model = ModelFactory.create()
    assert interrupt(model) == 5.0
    end_pause(model)
    reaper.reap(SegmentationModel)
    assert sent == [model.pk]
    # The clock of the worker is behind that of the reaper: to it, the row is not due yet.
    SegmentationModel.objects.filter(pk=model.pk).update(due_at=timezone.now() + timedelta(seconds=30))
    assert claim.claim(SegmentationModel, model.pk)


def test_a_row_that_a_clock_ahead_queued_is_claimed_at_once() -> None:
    model = ModelFactory.create()
    ahead = timezone.now() + timedelta(seconds=30)
    SegmentationModel.objects.filter(pk=model.pk).update(due_at=ahead, sent_at=ahead)
    assert claim.claim(SegmentationModel, model.pk)


def test_a_clock_that_was_put_back_leaves_no_row_behind(sent: list[int]) -> None:
    """A heartbeat and a queue time of hours ahead, as a machine wrote them whose clock was wrong."""
    ahead = timezone.now() + timedelta(hours=3)
    working, waiting, paused = ModelFactory.create(), ModelFactory.create(), ModelFactory.create()
    assert claim.claim(SegmentationModel, working.pk)
    SegmentationModel.objects.filter(pk=working.pk).update(heartbeat_at=ahead)
    SegmentationModel.objects.filter(pk=waiting.pk).update(due_at=ahead, sent_at=ahead)
    SegmentationModel.objects.filter(pk=paused.pk).update(due_at=ahead, sent_at=None)
    reaper.reap(SegmentationModel)
    reaper.reap(SegmentationModel)
    assert sorted(sent) == sorted([working.pk, waiting.pk, paused.pk])
    assert claim.claim(SegmentationModel, waiting.pk)
    assert claim.claim(SegmentationModel, paused.pk)
