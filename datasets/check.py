"""The worker's side of a dataset: bring the archive, check every pair, store what is good, write the catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction

from datasets.models import Dataset, DatasetClass, Sample
from datasets.pipeline import PairPipeline
from datasets.samples import CheckedSample
from datasets.url_import import DownloadLimits, UrlImportError, download
from datasets.versions import Base, KeptSampleError, Merged, changes_of, merge, read_kept, split_of
from medseg_site.shared.catalogue import manifests
from medseg_site.shared.jobs.claim import Claim, ClaimLostError
from medseg_site.shared.jobs.run import Work, run
from medseg_site.shared.storage import objects as storage
from medseg_site.shared.storage import scratch
from ml_core.dataset import findings
from ml_core.dataset.checks import DatasetCheck
from ml_core.dataset.findings import DatasetRefusedError, Issue
from ml_core.dataset.pairing import Pairing, find_pairs
from ml_core.dataset.splits import Split
from ml_core.errors import ImageError
from ml_core.io.containers import ArchiveError, ArchiveLimits, SafeArchive
from uploads.verification import UploadDamagedError, checked_sha256

MAX_ISSUES = 1_000  # kept; the rest is counted
ROWS_AT_ONCE = 500


def check(pk: int) -> None:
    """Check one dataset. The row ends as ready, or as error with the reason."""
    run(_DatasetCheck(), pk)


class _DatasetCheck(Work[Dataset]):
    model = Dataset
    TOO_LONG = "The check took longer than its time limit. Split the dataset into smaller ones."
    UNEXPECTED = "The check ended unexpectedly ({error}). Check it again; if it fails again, see its log."
    # What is wrong with the archive itself: it is removed, for another check would find the same.
    USELESS_ARCHIVE = (ArchiveError, UrlImportError, UploadDamagedError, DatasetRefusedError)

    def do(self, job: Claim[Dataset]) -> None:
        with scratch.scratch_folder(f"dataset-{job.row.pk}") as folder:
            _check(job, folder)

    def refusal_of(self, row: Dataset, error: Exception) -> str | None:
        return str(error) if isinstance(error, (*self.USELESS_ARCHIVE, KeptSampleError)) else None

    def refuse(self, job: Claim[Dataset], error: Exception, reason: str) -> None:
        if isinstance(error, self.USELESS_ARCHIVE):
            _refuse(job, reason, error.issues if isinstance(error, DatasetRefusedError) else [])
        else:
            super().refuse(job, error, reason)

    def discard(self, job: Claim[Dataset]) -> None:
        _discard(job)

    def forget(self, row: Dataset) -> None:
        storage.delete_prefix(storage.object_key("datasets", row.uuid))


def _check(job: Claim[Dataset], folder: Path) -> None:
    dataset = job.row
    base = _base_of(dataset)
    check, checked = _check_pairs(job, folder, base)
    with job.kept_alive():
        found = check.finish(checked)
        for sample in found.left_out:
            storage.delete_prefix(sample.image.key.rpartition("/")[0])
    samples, fingerprint = found.cases, found.fingerprint
    changes = changes_of(samples, base)
    if base and changes["kept"] == base.dataset.file_count == len(samples):
        raise _nothing_new(base, check.issues)
    job.beat(force=True)  # the last moment to notice a wish to cancel
    split = split_of(samples, found.duplicates, base)
    mask_codes = {str(code): value for code, value in found.codes.items()}  # as JSON keeps it
    columns: dict[str, Any] = {
        "file_count": len(samples),
        "modality": fingerprint.modality[:32],
        "dimensions": found.dimensions,
        "channels": fingerprint.channels,
        "changes": changes,
        "fingerprint": replace(fingerprint, grouping=split.grouping, mask_codes=mask_codes).to_json(),
        **_issue_columns(check.issues),
    }
    # Samples first, for their manifest tells their numbers; the dataset is not ready before that lies in storage.
    with transaction.atomic():
        job.update(progress={})
        Sample.objects.filter(dataset=dataset).delete()
        DatasetClass.objects.filter(dataset=dataset).delete()
        rows = _sample_rows(dataset, samples, split)
        while some := list(islice(rows, ROWS_AT_ONCE)):  # memory must not grow with their number
            Sample.objects.bulk_create(some)
        DatasetClass.objects.bulk_create(DatasetClass(dataset=dataset, **row) for row in found.classes)
    with job.kept_alive():
        columns = manifests.store_done(dataset, {**columns, **job.last_words()})
        storage.settle()
    with transaction.atomic():
        job.finish(progress={}, **columns)


def _sample_rows(dataset: Dataset, samples: list[CheckedSample], split: Split) -> Iterator[Sample]:
    parts = {index: part for part in ("train", "val", "test") for index in getattr(split, part)}
    for position, sample in enumerate(samples):
        yield Sample(
            dataset=dataset,
            position=position,
            name=sample.name,
            patient_group=sample.group,
            split=parts[position],
            shape=list(sample.shape),
            spacing=sample.spacing,
            image_key=sample.image.key,
            image_sha256=sample.image.sha256,
            mask_key=sample.mask.key,
            mask_sha256=sample.mask.sha256,
            thumbnail_key=sample.thumbnail_key,
            thumbnail_offset=sample.thumbnail_offset,
            thumbnail_size=sample.thumbnail_size,
        )


def _refuse(job: Claim[Dataset], reason: str, issues: list[Issue]) -> None:
    """Remove what came and was made, then say so: once the row is `error` it may be checked again from its URL, and what
    lies there is that check's. An upload cannot be checked again without its archive; if this dies first, it is needed."""
    archive = storage.object_key("datasets", job.row.uuid, "archive.zip")
    _discard(job)
    if job.row.source_url:
        try:
            job.update(s3_key="")
        except ClaimLostError:
            return
        with job.kept_alive():
            storage.delete_object(archive)
    job.fail(reason, s3_key="", **_issue_columns(issues))
    refused = Dataset.objects.filter(pk=job.row.pk, status=Dataset.WORDS.failed, s3_key="")
    if not job.row.source_url and refused.exists():
        storage.delete_object(archive)


def _discard(job: Claim[Dataset]) -> None:
    """Remove what a check made that did not come to its end, while the row is still its own."""
    prefix = storage.object_key("datasets", job.row.uuid)
    mine = Dataset.objects.filter(pk=job.row.pk, claim_token=job.token)
    if not mine.exists():
        return
    with job.kept_alive():
        Sample.objects.filter(dataset__in=mine).delete()
        DatasetClass.objects.filter(dataset__in=mine).delete()
        storage.delete_prefix(f"{prefix}/samples")
        storage.delete_object(f"{prefix}/samples.jsonl.gz")


def _bring_archive(job: Claim[Dataset], folder: Path) -> Path:
    """A local file with the archive: the stored upload, or what the URL serves, which is then stored too."""
    dataset = job.row
    if dataset.s3_key:
        with job.kept_alive():  # bringing and reading gigabytes takes longer than a heartbeat may be silent
            path = storage.fetch(dataset.s3_key, dataset.checksum or None)
            checksum = dataset.checksum or checked_sha256(dataset.uuid, path)
        if not dataset.checksum:  # it came in parts, which nobody had read as one file before
            job.update(checksum=checksum)
            dataset.checksum = checksum
        return path
    target = folder / "download.zip"

    def on_progress(received: int, total: int | None) -> None:
        share = received / total if total else None
        job.beat({"stage": "downloading", "done": received, "total": total, "fraction": share})

    limits = DownloadLimits(
        max_bytes=settings.MEDSEG_MAX_UPLOAD_BYTES, total_seconds=settings.MEDSEG_URL_IMPORT_SECONDS
    )
    allow = settings.MEDSEG_URL_IMPORT_ALLOW_PRIVATE
    sha256 = download(dataset.source_url, target, limits=limits, allow_private=allow, on_progress=on_progress)
    key = storage.object_key("datasets", dataset.uuid, "archive.zip")
    with job.kept_alive():
        stored = storage.store_file(key, target, sha256=sha256)
    job.update(
        s3_key=key,
        checksum=stored.sha256,
        total_size_mb=round(stored.size / 2**20, 3),
        archive_name="archive.zip",
    )
    dataset.s3_key, dataset.checksum = key, stored.sha256
    return target


def _base_of(dataset: Dataset) -> Base | None:
    base = Base.of(dataset) if dataset.based_on is not None else None
    if dataset.based_on is not None and base is None:
        raise findings.BASE_DELETED.refusal(version=dataset.based_on)
    return base


def _check_pairs(job: Claim[Dataset], folder: Path, base: Base | None) -> tuple[DatasetCheck, list[CheckedSample]]:
    """The archive's pairs, and of a later version the samples that stay. One that only leaves some out has no archive."""
    dataset = job.row
    limits = ArchiveLimits(max_expanded_bytes=settings.MEDSEG_MAX_EXPANDED_BYTES)
    has_archive = bool(dataset.s3_key or dataset.source_url)
    with SafeArchive(_bring_archive(job, folder), limits) if has_archive else nullcontext() as archive:
        pairing = find_pairs(archive.sizes) if archive else Pairing([], [])
        if archive and not pairing.pairs:
            raise findings.too_few(0, pairing.issues)
        merged = merge(base, pairing.pairs)
        classes = base.class_table() if base else None
        check = DatasetCheck(classes, dimensions=merged.dimensions, issues=pairing.issues)
        return check, _check_items(job, folder, archive, merged, check)


def _check_items(
    job: Claim[Dataset], folder: Path, archive: SafeArchive | None, merged: Merged, check: DatasetCheck
) -> list[CheckedSample]:
    items, checked = merged.items, list[CheckedSample]()
    prefix = storage.object_key("datasets", job.row.uuid, "samples")
    compared = min(len(items), findings.MAX_COMPARED)
    # Kept alive, for one large volume can take longer to read, or slow storage to take, than a heartbeat may be silent.
    with job.kept_alive(), PairPipeline(archive, folder, prefix, compared) as pipeline:
        for position, item, read in pipeline.read(items):
            job.beat({"stage": "checking", "done": position, "total": len(items), "fraction": position / len(items)})
            earlier = merged.instead_of.get(item.name[:300])
            try:
                known = pipeline.know(read, check, earlier)
            except (ArchiveError, ImageError) as error:
                check.leave_out(error, item.name)
                if earlier is None:
                    continue
                check.issues.append(findings.NOT_REPLACED.issue(item.name))
                known = pipeline.know(partial(read_kept, earlier), check)
            finally:
                del read  # its pixels
            checked += pipeline.store(known, position)
        for sample in pipeline.rest():
            job.beat()
            checked.append(sample)
    return checked


def _nothing_new(base: Base, issues: list[Issue]) -> DatasetRefusedError:
    cure = "Add pairs that are new or differ from those of the same name, or name samples to leave out."
    first = findings.first_problem(issues, cure)
    return findings.NOTHING_NEW.refusal(issues, version=base.dataset.version, first=first)


def _issue_columns(issues: list[Issue]) -> dict[str, Any]:
    ordered = sorted(issues, key=lambda issue: issue.severity != "error")
    rows = [
        {"severity": i.severity, "code": i.code, "file": i.file[:500], "detail": i.detail[:1000]}
        for i in ordered[:MAX_ISSUES]
    ]
    return {"issues": rows, "issue_count": len(issues)}
