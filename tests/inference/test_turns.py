"""Batches by turns: fair among each other, single images first, few messages, cancelled as a whole."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.utils import timezone
from rest_framework.test import APIClient

from inference import batches, prediction, tasks, turns
from inference.models import InferenceBatch, InferenceResult
from medseg_site.shared.base.events import redis_client
from medseg_site.shared.jobs import claim, reaper
from tests.factories import InferenceFactory, project_of

pytestmark = pytest.mark.django_db


def make_batch(images: int, **columns: Any) -> InferenceBatch:
    """An unpacked batch. Its images have no model, so each ends (as failed) as soon as a worker takes it."""
    batch = InferenceBatch.objects.create(project=project_of(), status="running", archive_name="many.zip", **columns)
    common = {"project": batch.project, "batch": batch, "status": "queued"}
    rows = [InferenceResult(image_name=f"{index}.png", **common) for index in range(images)]
    InferenceResult.objects.bulk_create(rows, batch_size=500)
    return batch


def ended() -> list[InferenceResult]:
    """Images that have ended, in the order in which they did."""
    return list(InferenceResult.objects.filter(finished_at__isnull=False).order_by("finished_at"))


@pytest.fixture
def queued() -> Any:
    """Messages in the queue of the inference workers, by task (Redis is real)."""
    redis_client().delete("infer")

    def count() -> Counter[str]:
        names = (tasks.work_on_batches.name, tasks.run_inference.name)
        return Counter(name for raw in redis_client().lrange("infer", 0, -1) for name in names if name.encode() in raw)

    yield count
    redis_client().delete("infer")


def test_batches_take_turns_and_a_single_image_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)  # one image each turn
    large, small = make_batch(30), make_batch(2)
    sent, _ = batches.call_workers(large.pk)
    for _ in range(4):
        assert turns.take_turn(large.pk, sent)
    assert [row.batch_id for row in ended()] == [large.pk, small.pk, large.pk, small.pk]
    small.refresh_from_db()
    assert small.status == "failed"
    monkeypatch.setattr(turns, "TURN_SECONDS", 60.0)
    single = InferenceFactory.create(model=None)
    assert turns.take_turn(large.pk, sent) is False, "all of it is done in one turn"
    assert ended()[4].pk == single.pk
    assert len(ended()) == 33


def test_a_turn_makes_headway_though_single_images_keep_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch(2)
    sent, _ = batches.call_workers(batch.pk)
    real = prediction.predict

    def run_and_send_another(pk: int) -> float | None:
        InferenceFactory.create(model=None)
        return real(pk)

    monkeypatch.setattr(turns, "TURN_SECONDS", 0.5)
    monkeypatch.setattr(turns, "predict", run_and_send_another)
    turns.take_turn(batch.pk, sent)
    assert any(row.batch_id == batch.pk for row in ended())


@pytest.mark.slow
def test_ten_thousand_images_are_few_messages(queued: Any) -> None:
    first, second, third = make_batch(10_000), make_batch(500), make_batch(3)
    InferenceBatch.objects.exclude(pk=first.pk).update(status="queued")
    tasks.send_turns(first.pk)
    assert queued() == {tasks.work_on_batches.name: batches.MAX_MESSAGES}
    InferenceBatch.objects.update(status="running")
    tasks.send_turns(second.pk)
    tasks.send_turns(third.pk)
    assert queued().total() == batches.MAX_MESSAGES + batches.MAX_MESSAGES // 3 + 3


def test_messages_of_an_earlier_call_die_out() -> None:
    batch = make_batch(2)
    old, _ = batches.call_workers(batch.pk)
    new, _ = batches.call_workers(batch.pk)
    assert turns.take_turn(batch.pk, old) is False
    assert ended() == []
    turns.take_turn(batch.pk, new)
    assert len(ended()) == 2
    assert turns.take_turn(batch.pk + 1, new) is False, "a batch that was deleted"


def test_the_reaper_calls_workers_again_and_sends_no_message_per_image(queued: Any) -> None:
    batch = make_batch(300)
    long_ago = timezone.now() - timedelta(seconds=reaper.LOST_MESSAGE_SECONDS + 5)
    InferenceResult.objects.update(due_at=long_ago, sent_at=long_ago)
    single = InferenceFactory.create(due_at=long_ago, sent_at=long_ago)
    ended_batch = make_batch(1)
    InferenceBatch.objects.filter(pk=ended_batch.pk).update(status="completed", finished_at=timezone.now())
    InferenceResult.objects.filter(batch=ended_batch).update(
        due_at=long_ago, sent_at=long_ago
    )  # tried again after its batch ended
    tasks.reap_inferences()
    assert queued() == {tasks.run_inference.name: 2}
    InferenceBatch.objects.filter(pk=batch.pk).update(called_at=long_ago, due_at=long_ago)
    for _ in range(3):
        tasks.reap_inferences()
    assert queued() == {tasks.run_inference.name: 2, tasks.work_on_batches.name: batches.MAX_MESSAGES}
    assert InferenceResult.objects.get(pk=single.pk).status == "queued"


def test_a_batch_without_a_worker_calls_ever_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch(3)
    start = timezone.now()
    now = [start]
    monkeypatch.setattr(timezone, "now", lambda: now[0])
    called: list[float] = []

    def wait(hours: float) -> None:
        until = now[0] + timedelta(hours=hours)
        while now[0] < until:
            now[0] += timedelta(seconds=60)
            for pk in batches.forgotten_batches():
                called.append((now[0] - start).total_seconds())
                batches.call_workers(pk)

    wait(24)
    assert called[:4] == [120, 300, 660, 1380], "doubling, and up to one pass more each"
    assert 24 < len(called) < 32
    InferenceBatch.objects.filter(pk=batch.pk).update(served_at=now[0])  # a worker is back, and its message is lost
    before = len(called)
    wait(0.2)
    assert len(called) - before >= 2


def test_batches_are_not_kept_waiting_by_many_single_images(queued: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch(1)
    long_ago = timezone.now() - timedelta(seconds=reaper.LOST_MESSAGE_SECONDS + 5)
    InferenceFactory.create(due_at=long_ago, sent_at=long_ago)
    InferenceBatch.objects.filter(pk=batch.pk).update(called_at=long_ago, due_at=long_ago)

    def out_of_time(**options: Any) -> None:
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(tasks.run_inference, "apply_async", out_of_time)
    with pytest.raises(SoftTimeLimitExceeded):
        tasks.reap_inferences()
    assert queued() == {tasks.work_on_batches.name: 1}


def test_a_batch_can_be_cancelled_as_a_whole(api: APIClient) -> None:
    batch = make_batch(5)
    first, second = batch.inferences.order_by("pk")[:2]
    prediction.predict(first.pk)
    running = claim.claim(InferenceResult, second.pk)
    assert running
    answer = api.post(f"/api/v1/inference-batches/{batch.pk}/cancel/")
    assert answer.status_code == 202
    shown = answer.json()
    assert (shown["status"], shown["cancel_requested"], shown["failed"]) == ("running", True, 4)
    tasks.note_cancelled(batch.pk)
    with pytest.raises(claim.CancelledError):
        running.beat(force=True)
    running.cancel()
    batches.close_finished_batches()
    shown = api.get(f"/api/v1/inference-batches/{batch.pk}/").json()
    assert (shown["status"], shown["total"], shown["failed"], shown["error"]) == ("cancelled", 5, 5, None)
    assert api.post(f"/api/v1/inference-batches/{batch.pk}/cancel/").status_code == 409


def test_a_batch_cancelled_while_it_is_unpacked_ends_with_its_images(api: APIClient) -> None:
    batch = make_batch(3, cancel_requested=True)  # the wish came after the last look, then the images were made
    assert not batches.batches_with_work().exists()
    assert batches.close_finished_batches() == [batch.pk]
    batch.refresh_from_db()
    assert batch.status == "running", "its images' manifests do not say it yet"
    tasks.note_cancelled(batch.pk)
    batch.refresh_from_db()
    assert batch.status == "cancelled"
    assert set(batch.inferences.values_list("status", flat=True)) == {"cancelled"}
