"""Compares the time of lists, details and pages with few and with very many rows.

    python -m benchmarks.lists [--samples 1000 1000000] [--inferences 1000 100000] [--rounds 40] [--databases URL URL]
        [--projects 1 --share 0.5]

Two platforms run, each as a process with a temporary folder and the real migrations, on SQLite or on two empty
databases. Each request goes to both in turn, so that other work of the machine slows both. Requests go through all of
Django, but not through a network. Prints Markdown: median and 95th percentile in ms, and the number of queries. Ratios
above 2 are bold.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from contextlib import nullcontext
from multiprocessing.connection import Connection
from typing import Any

MODELS, BATCHES = 20, 5
MAX_RATIO = 2.0
WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs=2, default=[1_000, 1_000_000])
    parser.add_argument("--inferences", type=int, nargs=2, default=[1_000, 100_000])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument(
        "--projects",
        type=int,
        default=0,
        help="send the requests as a user who is a member of this many projects; 0: as the single user",
    )
    parser.add_argument("--share", type=float, default=0.75, help="share of the inferences that this user sees")
    parser.add_argument("--databases", nargs=2, default=["", ""], help="DATABASE_URL of each; default: SQLite")
    options = parser.parse_args()
    spawn, pipes, processes = multiprocessing.get_context("spawn"), [], []
    for size in zip(options.samples, options.inferences, options.databases, strict=True):
        ours, theirs = spawn.Pipe()
        processes.append(
            spawn.Process(target=platform, args=(theirs, *size, options.projects, options.share), daemon=True)
        )
        processes[-1].start()
        # While this end is open, nobody would notice that the process has ended.
        theirs.close()
        pipes.append(ours)
        print(ours.recv(), flush=True)
    few, many = pipes
    print(f"\nload of the machine {os.getloadavg()[0]:.1f}, {options.rounds} requests each, in turn\n")
    print(
        f"| request | median, ms: {options.samples[0]:,} / {options.inferences[0]:,} rows "
        f"| {options.samples[1]:,} / {options.inferences[1]:,} | ratio | p95 | p95 | ratio of p95 | queries |"
    )
    print("|---|---|---|---|---|---|---|---|")
    names = few.recv()
    assert many.recv() == names
    for name in names:
        measure(name, few, many, options.rounds)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        # The process removes its temporary folder before it ends.
        process.join()


def measure(name: str, few: Connection, many: Connection, rounds: int) -> None:
    """Send one request many times to both platforms, and print its row of the table."""
    times: tuple[list[float], list[float]] = ([], [])
    queries: list[int] = []
    for number in range(WARM_UP + rounds):
        for pipe, kept in zip((few, many), times, strict=True):
            pipe.send((name, number == 0))
            milliseconds, count = pipe.recv()
            if number >= WARM_UP:
                kept.append(milliseconds)
            elif number == 0:
                queries.append(count)
    medians = [statistics.median(kept) for kept in times]
    p95 = [statistics.quantiles(kept, n=20)[18] for kept in times]

    def ratio(pair: list[float]) -> str:
        quotient = pair[1] / pair[0]
        return f"**{quotient:.2f}**" if quotient > MAX_RATIO else f"{quotient:.2f}"

    count_of = f"{queries[0]}" if queries[0] == queries[1] else f"**{queries[0]} → {queries[1]}**"
    print(
        f"| {name} | {medians[0]:.1f} | {medians[1]:.1f} | {ratio(medians)} "
        f"| {p95[0]:.1f} | {p95[1]:.1f} | {ratio(p95)} | {count_of} |",
        flush=True,
    )


def platform(pipe: Connection, samples: int, inferences: int, database: str, projects: int, share: float) -> None:
    """Fill a database, then answer the pipe: make each request whose name it sends, until it sends None.

    This runs in a process of its own.
    """
    with tempfile.TemporaryDirectory(prefix="medseg-lists-") as folder:
        os.environ.update(MEDSEG_DATA_DIR=folder, DJANGO_SETTINGS_MODULE="medseg_site.settings", LOG_LEVEL="ERROR")
        os.environ |= {"ALLOWED_HOSTS": "testserver", "DATABASE_URL": database}
        os.environ["MEDSEG_SINGLE_USER"] = "0" if projects else "1"
        import django

        django.setup()
        from django.core.management import call_command
        from django.db import connection
        from django.test import Client
        from django.test.utils import CaptureQueriesContext

        call_command("migrate", verbosity=0)
        started, filled, client = time.perf_counter(), Filled(projects, share), Client()
        if projects:
            client.force_login(filled.user)
        filled.fill(samples, inferences)
        seconds = time.perf_counter() - started
        pipe.send(f"{connection.vendor}: {samples:,} samples and {inferences:,} inferences, filled in {seconds:.0f} s")
        requests = requests_of(filled)
        pipe.send(list(requests))
        while asked := pipe.recv():
            name, is_counted = asked
            with CaptureQueriesContext(connection) if is_counted else nullcontext() as queries:
                started = time.perf_counter()
                answer = client.get(requests[name])
                milliseconds = (time.perf_counter() - started) * 1e3
            assert answer.status_code == 200, f"{requests[name]}: {answer.status_code}"
            pipe.send((milliseconds, len(queries) if queries else 0))


class Filled:
    """The rows of a platform that has been used for long.

    One dataset holds all samples, and half of the inferences are in batches. With several users, `share` of the
    inferences is spread over the user's projects. The others belong to other users, with models and batches of their
    own.
    """

    def __init__(self, projects: int, share: float) -> None:
        from django.contrib.auth.models import User

        from accounts.models import Membership, Project
        from accounts.services import personal_project
        from datasets.models import Dataset, DatasetClass, Sample
        from inference.models import InferenceResult
        from medseg_site.shared.base.local_user import local_user

        self.samples_of, self.results_of = Sample, InferenceResult
        self.user = User.objects.create_user("user") if projects else local_user()
        shared = [Project.objects.create(name=f"shared {index}") for index in range(projects - 1)]
        Membership.objects.bulk_create(Membership(project=project, user=self.user, role="member") for project in shared)
        self.projects = [personal_project(self.user), *shared]
        self.share = share if projects else 1.0
        self.models, self.batches = self._tables(self.projects)
        self.dataset = Dataset.objects.get(name="large")
        for value in (0, 255):
            DatasetClass.objects.create(dataset=self.dataset, value=value, name=f"class {value}", color="#ff0000")
        if projects:
            self.others = self._tables([Project.objects.create(name="of others")])

    def _tables(self, projects: list[Any]) -> tuple[list[Any], list[Any]]:
        """Make datasets, models and batches, spread over the projects. Returns the models and the batches."""
        from django.utils import timezone

        from datasets.models import Dataset
        from inference.models import InferenceBatch
        from models_app.models import SegmentationModel

        now = timezone.now()
        columns = {"created_by": self.user, "finished_at": now}
        ready = {**columns, "status": "ready", "s3_key": "x", "dimensions": 2, "file_count": 2}
        names = ["large", *(f"other {index}" for index in range(MODELS))]
        datasets = [
            Dataset.objects.create(name=name, project=projects[index % len(projects)], **ready)
            for index, name in enumerate(names)
        ]
        trained = {**columns, "status": "completed", "s3_key": "x", "checksum": "0" * 64, "trained_at": now}
        models = [
            SegmentationModel.objects.create(
                name=f"model {index}", dataset=datasets[0], project=projects[index % len(projects)], **trained
            )
            for index in range(MODELS)
        ]
        batches = [
            InferenceBatch.objects.create(
                model=models[index], project=models[index].project, archive_name="a.zip", status="completed", **columns
            )
            for index in range(BATCHES)
        ]
        return models, batches

    def fill(self, samples: int, inferences: int) -> None:
        from django.db import connection

        from datasets.models import Dataset, Sample

        for start in range(0, samples, 20_000):
            positions = range(start, min(start + 20_000, samples))
            Sample.objects.bulk_create([self._sample(position) for position in positions], batch_size=1_000)
        Dataset.objects.filter(pk=self.dataset.pk).update(file_count=samples)
        for start in range(0, inferences, 5_000):
            numbers = range(start, min(start + 5_000, inferences))
            self.results_of.objects.bulk_create([self._inference(number) for number in numbers], batch_size=500)
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE" if connection.vendor == "postgresql" else "ANALYZE")

    def _sample(self, position: int) -> Any:
        prefix = f"datasets/{self.dataset.uuid}/samples/{position:07d}"
        return self.samples_of(
            dataset=self.dataset,
            position=position,
            name=f"case_{position:07d}",
            split="train" if position % 10 < 7 else "val" if position % 10 < 9 else "test",
            shape=[512, 512],
            image_key=f"{prefix}/image.png",
            image_sha256=f"{position:064d}",
            mask_key=f"{prefix}/mask.png",
            mask_sha256=f"{position:064d}",
            thumbnail_key=f"{prefix}/thumbnail.jpg",
        )

    def _inference(self, number: int) -> Any:
        failed = number % 50 == 0
        result: dict[str, Any] = {"status": "failed", "error": "The image is damaged."}
        if not failed:
            classes = [
                {"value": v, "name": f"class {v}", "color": "#ff0000", "pixels": 9, "fraction": 0.5, "volume_ml": None}
                for v in (0, 255)
            ]
            result = {"status": "completed", "output_image_s3_key": "x", "output_sha256": "0" * 64, "classes": classes}
            result |= {"seconds": random.random(), "confidence": random.random(), "certainty_key": "x"}
            result |= {"certainty_sha256": "0" * 64}
        models, batches = (self.models, self.batches) if number % 100 < 100 * self.share else self.others
        model, batch = models[number % MODELS], batches[number // 2 % BATCHES] if number % 2 else None
        return self.results_of(
            project=(batch or model).project,
            model=model,
            batch=batch,
            image_name=f"image_{number:07d}.png",
            input_image_s3_key="x",
            shape=[512, 512],
            finished_at=self.dataset.uploaded_at,
            created_by=self.dataset.created_by,
            **result,
        )


def requests_of(filled: Filled) -> dict[str, str]:
    """The name of each request → its address."""
    api, dataset, batch = "/api/v1", filled.dataset.pk, filled.batches[0].pk
    samples = filled.samples_of.objects.count()
    visible = filled.results_of.objects.visible_to(filled.user)
    results = visible.count()
    middle, last = samples // 100, -(-samples // 50)
    listed = f"{api}/datasets/{dataset}/samples/"
    inferences = f"{api}/inferences/"
    some_sample = filled.samples_of.objects.get(position=samples // 2).pk
    completed = visible.filter(status="completed").order_by("pk")
    some_result = completed[completed.count() // 2].pk
    return {
        "API samples, first page": listed,
        "API samples, middle page": f"{listed}?page={middle}",
        "API samples, last page": f"{listed}?page={last}",
        "API samples, split=val": f"{listed}?split=val",
        "API samples, split=val, deep page": f"{listed}?split=val&page={max(1, last // 6)}",
        "API samples, ordering=-name": f"{listed}?ordering=-name",
        "API samples, ordering=name, middle page": f"{listed}?ordering=name&page={middle}",
        "API samples, search of a name": f"{listed}?search=case_00005",
        "API inferences, first page": inferences,
        "API inferences, middle page": f"{inferences}?page={max(1, results // 100)}",
        "API inferences, last page": f"{inferences}?page={max(1, -(-results // 50))}",
        "API inferences, status=failed": f"{inferences}?status=failed",
        "API inferences, one model": f"{inferences}?model={filled.models[3].pk}",
        "API inferences, one batch": f"{inferences}?batch={batch}",
        "API inferences, ordering=confidence": f"{inferences}?ordering=confidence",
        "API inferences, ordering=image_name": f"{inferences}?ordering=image_name",
        "API inferences, ordering=seconds, middle": f"{inferences}?ordering=seconds&page={max(1, results // 100)}",
        "API inferences, search of a name": f"{inferences}?search=image_0000777",
        "API inference": f"{inferences}{some_result}/",
        "API batches": f"{api}/inference-batches/",
        "API batch": f"{api}/inference-batches/{batch}/",
        "API datasets": f"{api}/datasets/",
        "API models": f"{api}/models/",
        "page of all inferences": "/inferences/",
        "page of all inferences, last": f"/inferences/?page={-(-results // 50)}",
        "page of a batch": f"/inferences/batches/{batch}/",
        "page of a batch, unsure first": f"/inferences/batches/{batch}/?order=unsure",
        "page of a dataset": f"/datasets/{dataset}/",
        "page of a dataset, last samples": f"/datasets/{dataset}/?page={-(-samples // 24)}",
        "page of a sample": f"/datasets/{dataset}/samples/{some_sample}/",
        "page of all datasets": "/datasets/",
        "page of all models": "/models/",
        "home": "/",
    }


if __name__ == "__main__":
    main()
