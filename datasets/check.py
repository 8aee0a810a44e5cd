"""The worker's side of a dataset: fetch the archive, check every pair, store the good ones, and write the catalogue."""

from __future__ import annotations

import os
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
from ml_core.dataset.checks import CheckedDataset, DatasetCheck, UndecidedError
from ml_core.dataset.classes import ClassTable
from ml_core.dataset.findings import DatasetRefusedError, Issue
from ml_core.dataset.pairing import Pairing, find_pairs
from ml_core.dataset.reading import Decision, Reading
from ml_core.dataset.splits import Split
from ml_core.dataset.survey import MaskFacts, MaskSurvey, read_facts
from ml_core.errors import ImageError
from ml_core.files import LARGE_FILE, in_order
from ml_core.io.containers import ArchiveError, ArchiveLimits, SafeArchive
from ml_core.io.formats import suffix_of
from uploads.verification import UploadDamagedError, checked_sha256

# The row keeps so many issues, so that it stays small. Any further ones are only counted.
MAX_ISSUES = 1_000
ROWS_AT_ONCE = 500

_Checked = CheckedDataset[CheckedSample]


def check(pk: int) -> None:
    """Check one dataset. The row then ends as `ready`, or as `error` with the reason."""
    run(_DatasetCheck(), pk)


class _DatasetCheck(Work[Dataset]):
    model = Dataset
    TOO_LONG = "The check took longer than its time limit. Split the dataset into smaller ones."
    UNEXPECTED = "The check ended unexpectedly ({error}). Check it again; if it fails again, see its log."
    # Errors of the archive itself. The archive is then removed, because another check would find the same errors.
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
    check, result = _check_pairs(job, folder, base)
    with job.kept_alive():
        for sample in result.left_out:
            storage.delete_prefix(sample.image.key.rpartition("/")[0])
    samples, fingerprint = result.cases, result.fingerprint
    changes = changes_of(samples, base)
    is_read_otherwise = base is not None and result.decision.reading != Reading.from_json(base.dataset.reading)
    if base and changes["kept"] == base.dataset.file_count == len(samples) and not is_read_otherwise:
        raise _nothing_new(base, check.issues)
    # This is the last moment at which a cancel can still stop the check.
    job.beat(force=True)
    split = split_of(samples, result.duplicates, base)
    columns: dict[str, Any] = {
        "file_count": len(samples),
        "modality": fingerprint.modality[:32],
        "dimensions": result.dimensions,
        "channels": fingerprint.channels,
        "changes": changes,
        "fingerprint": replace(fingerprint, grouping=split.grouping, mask_codes=result.codes).to_json(),
        "reading": result.decision.reading.to_json(),
        "kind": "instances" if result.decision.reading.objects else "semantic",
        **_issue_columns(check.issues),
    }
    # The samples are written first, because the manifest states their ids. The dataset becomes ready only once the
    # manifest is in storage.
    with transaction.atomic():
        job.update(progress={})
        Sample.objects.filter(dataset=dataset).delete()
        DatasetClass.objects.filter(dataset=dataset).delete()
        rows = _sample_rows(dataset, samples, split)
        # The rows are written in chunks, so that memory does not grow with their number.
        while chunk := list(islice(rows, ROWS_AT_ONCE)):
            Sample.objects.bulk_create(chunk)
        # The background comes first.
        DatasetClass.objects.bulk_create(
            DatasetClass(dataset=dataset, is_background=number == 0, **row) for number, row in enumerate(result.classes)
        )
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
    """Remove the archive and everything that was made from it, and end the row as `error` with the reason.

    An archive that came from a URL is removed before the row ends: once the row is `error`, a new check may start, and
    the archive in storage is then the one that the new check fetched. An uploaded archive is removed after the row has
    ended: if this worker dies in between, the upload is still there for the next attempt.
    """
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
    """Remove what an unfinished check made. A check whose row belongs to somebody else by now removes nothing."""
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
    """Return a local file with the archive: the stored upload, or a download from the URL, which is stored too."""
    dataset = job.row
    if dataset.s3_key:
        # To fetch and read gigabytes takes longer than the time after which a job without a heartbeat counts as lost.
        with job.kept_alive():
            path = storage.fetch(dataset.s3_key, dataset.checksum or None)
            checksum = dataset.checksum or checked_sha256(dataset.uuid, path)
        # An upload in parts has no checksum of the whole file until a worker reads it here.
        if not dataset.checksum:
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


def _check_pairs(job: Claim[Dataset], folder: Path, base: Base | None) -> tuple[DatasetCheck, _Checked]:
    """Check the pairs of the archive, together with the samples that a later version keeps.

    Where the masks are no plain numbers, the check begins again once it is decided how they are read. A version that
    only leaves samples out has no archive. Raises DatasetRefusedError when the archive has no pairs.
    """
    dataset = job.row
    limits = ArchiveLimits(max_expanded_bytes=settings.MEDSEG_MAX_EXPANDED_BYTES)
    has_archive = bool(dataset.s3_key or dataset.source_url)
    with SafeArchive(_bring_archive(job, folder), limits) if has_archive else nullcontext() as archive:
        pairing = find_pairs(archive.sizes, archive.head) if archive else Pairing([], [])
        if archive and not pairing.pairs:
            raise findings.too_few(0, pairing.issues)
        merged = merge(base, pairing.pairs)
        asked = Reading.from_json(dataset.reading)

        def attempt(classes: ClassTable | None) -> tuple[DatasetCheck, _Checked]:
            channels = base.dataset.channels if base else None
            kind: Any = {"dimensions": merged.dimensions, "channels": channels}
            check = DatasetCheck(classes, reading=asked, issues=pairing.issues, **kind)
            own_folder = folder / ("first" if classes is None else "decided")
            own_folder.mkdir()
            checked = _check_items(job, own_folder, archive, merged, check)
            with job.kept_alive():
                return check, check.finish(checked)

        try:
            return attempt(base.class_table(asked) if base else None)
        except UndecidedError as error:
            decision = error.decision
        assert archive is not None
        decision = decision or _survey(job, archive, pairing, folder, asked)
        # Nobody else may have the row when the objects of the first pass are replaced.
        _discard(job)
        job.beat(force=True)
        return attempt(ClassTable(decision=decision))


def _survey(job: Claim[Dataset], archive: SafeArchive, pairing: Pairing, folder: Path, asked: Reading) -> Decision:
    """Look at all masks, and decide how they are read."""
    survey = MaskSurvey(asked)

    def facts_of(position: int) -> MaskFacts | None:
        name = pairing.pairs[position].mask
        path = folder / f"mask-{position}{suffix_of(name)}"
        try:
            archive.extract(name, path)
            return read_facts(path, asked)
        except ArchiveError:
            return None
        finally:
            path.unlink(missing_ok=True)

    # Two large volumes at once could fill the memory.
    is_large = max(archive.sizes[pair.mask] for pair in pairing.pairs) > LARGE_FILE
    with job.kept_alive():
        for facts in in_order(facts_of, range(len(pairing.pairs)), 1 if is_large else max(1, os.cpu_count() or 1)):
            job.beat()
            if facts:
                survey.add(facts)
        return survey.decide()


def _check_items(
    job: Claim[Dataset], folder: Path, archive: SafeArchive | None, merged: Merged, check: DatasetCheck
) -> list[CheckedSample]:
    items, checked = merged.items, list[CheckedSample]()
    prefix = storage.object_key("datasets", job.row.uuid, "samples")
    compared = min(len(items), findings.MAX_COMPARED)
    # The job is kept alive because it can take long to read one large volume, or to send it to slow storage.
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
                # The future behind this call holds the pixels of the pair.
                del read
            checked += pipeline.store(known, position)
        for sample in pipeline.rest():
            job.beat()
            checked.append(sample)
    return checked


def _nothing_new(base: Base, issues: list[Issue]) -> DatasetRefusedError:
    cure = "Add new pairs, or pairs that differ from those of the same name, or name images to leave out."
    first = findings.first_problem(issues, cure)
    return findings.NOTHING_NEW.refusal(issues, version=base.dataset.version, first=first)


def _issue_columns(issues: list[Issue]) -> dict[str, Any]:
    ordered = sorted(issues, key=lambda issue: issue.severity != "error")
    rows = [
        {"severity": i.severity, "code": i.code, "file": i.file[:500], "detail": i.detail[:1000]}
        for i in ordered[:MAX_ISSUES]
    ]
    return {"issues": rows, "issue_count": len(issues)}
