"""Events reach those who watch, and the end of a job those who wait."""

from __future__ import annotations

import asyncio
import threading
import time

from channels.layers import get_channel_layer

from medseg_site.shared.base.events import group_name, publish, wait_a_moment, wake_waiting


def test_an_event_reaches_the_channel_layer_of_whoever_watches_the_row() -> None:
    async def watch() -> object:
        layer = get_channel_layer()
        channel = await layer.new_channel()
        await layer.group_add(group_name("model", 7), channel)
        await asyncio.to_thread(publish, "model", 8, {"type": "other"})
        await asyncio.to_thread(publish, "model", 7, {"type": "epoch", "train_loss": 0.5})
        return await asyncio.wait_for(layer.receive(channel), 10)

    assert asyncio.run(watch()) == {"type": "job.event", "message": {"type": "epoch", "train_loss": 0.5}}


def test_a_waiting_request_wakes_when_the_job_ends() -> None:
    started = time.monotonic()
    threading.Timer(0.1, wake_waiting, ["inference", 7]).start()
    wait_a_moment("inference", 7, 20)
    assert time.monotonic() - started < 15  # it woke, and did not sleep to the end
    wait_a_moment("inference", 7, 20)  # whoever comes late does not wait either
    assert time.monotonic() - started < 15
