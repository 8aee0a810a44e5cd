"""Simulates many workers on batches of images: real claims, turns and tables, but a pause instead of the network.

    DATABASE_URL=postgres://... python -m benchmarks.many_workers [--workers 100] [--image-seconds 1]

Every worker is a thread with its own database connection. Messages go through a queue in this process. The work is
three batches of different sizes, and a single image every other second. Prints how much of the workers' time was used,
how long single images and small batches waited, and how often two workers claimed the same image. The database must be
empty. Postgres must allow more connections (max_connections) than there are workers.
"""

from __future__ import annotations

import argparse
import os
import queue
import statistics
import tempfile
import threading
import time
from typing import Any

SIZES = (6_000, 600, 60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--image-seconds", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="medseg-workers-") as folder:
        os.environ.update(MEDSEG_DATA_DIR=folder, DJANGO_SETTINGS_MODULE="medseg_site.settings", LOG_LEVEL="ERROR")
        import django

        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        simulate(options.workers, options.image_seconds)


def simulate(workers: int, image_seconds: float) -> None:
    from django.db import connection

    from accounts.services import personal_project
    from inference import batches, turns
    from inference.models import InferenceBatch, InferenceResult
    from medseg_site.shared.base import events
    from medseg_site.shared.base.local_user import local_user
    from medseg_site.shared.jobs.claim import claim

    # Without these events no Redis is needed.
    events.publish = lambda *_: None
    events.wake_waiting = lambda *_: None
    attempts, claimed = [0], [0]

    def run(pk: int) -> bool:
        attempts[0] += 1
        job = claim(InferenceResult, pk)
        if job is None:
            return False
        claimed[0] += 1
        # A worker holds no connection either while it computes.
        connection.close()
        time.sleep(image_seconds)
        job.finish(output_image_s3_key="x", output_sha256="y")
        if job.row.batch_id:
            batches.close_batch_if_done(job.row.batch_id)
        return True

    # The turns of the platform now call the simulated work.
    turns.run = run  # type: ignore[attr-defined]
    messages: queue.Queue[tuple[Any, ...]] = queue.Queue()
    created, project = [], personal_project(local_user())
    for size in SIZES:
        batch = InferenceBatch.objects.create(project=project, status="running", archive_name=f"{size}.zip")
        row = {"project": project, "batch": batch, "status": "queued", "image_name": "a.png"}
        rows = (InferenceResult(**row) for _ in range(size))
        InferenceResult.objects.bulk_create(rows, batch_size=1_000)
        created.append(batch)
    for batch in created:
        sent, count = batches.call_workers(batch.pk)
        for _ in range(count):
            messages.put((batch.pk, sent))
    stop = threading.Event()

    def worker() -> None:
        while not stop.is_set():
            try:
                message = messages.get(timeout=0.2)
            except queue.Empty:
                continue
            if len(message) == 1:
                run(message[0])
            elif turns.take_turn(*message):
                messages.put(message)
            connection.close()

    def single_images() -> None:
        while not stop.wait(2):
            row = InferenceResult.objects.create(project=project, status="queued", image_name="single.png")
            messages.put((row.pk,))
        connection.close()

    threads = [threading.Thread(target=target) for target in [worker] * workers + [single_images]]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    while InferenceBatch.objects.filter(status="running").exists():
        time.sleep(0.2)
    seconds = time.monotonic() - started
    stop.set()
    for thread in threads:
        thread.join()
    done = InferenceResult.objects.filter(batch__isnull=False)
    assert done.count() == done.filter(status="completed", attempt=1).count() == sum(SIZES)
    used = claimed[0] * image_seconds / (workers * seconds)
    print(
        f"{connection.vendor}, {workers} workers, {image_seconds:g} s an image: {claimed[0]} images in {seconds:.1f} s,"
    )
    print(
        f"{claimed[0] / seconds:.1f} images/s of {workers / image_seconds:.1f} possible; "
        f"{used:.0%} of the workers' time was used"
    )
    print(f"claims that another worker won: {(attempts[0] - claimed[0]) / attempts[0]:.1%}")
    for batch in created:
        batch.refresh_from_db()
        took = (batch.finished_at - batch.created_at).total_seconds() if batch.finished_at else 0.0
        print(f"batch of {batch.archive_name.removesuffix('.zip')}: ended after {took:.1f} s")
    singles = InferenceResult.objects.filter(batch=None, status="completed").values_list("created_at", "started_at")
    waits = [(begun - made_at).total_seconds() for made_at, begun in singles if begun]
    print(f"single images: {len(waits)}, waited {statistics.median(waits):.2f} s (median), {max(waits):.2f} s at most")
    print(f"load of the machine {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
