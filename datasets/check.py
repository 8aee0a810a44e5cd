"""The worker's side of a dataset: bring the archive, check every pair, store what is good, write the catalogue."""

from __future__ import annotations

from collections import Counter
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
from datasets.samples import CheckedSample, ClassTable, mixed_dimensions
from datasets.url_import import DownloadLimits, UrlImportError, download
from datasets.versions import Base, KeptSampleError, Merged, changes_of, merge, read_kept, split_of
from medseg_site.shared.base.text import count_of
from medseg_site.shared.catalogue import manifests
from medseg_site.shared.jobs.claim import Claim, ClaimLostError
from medseg_site.shared.jobs.run import Work, run
from medseg_site.shared.storage import objects as storage
from medseg_site.shared.storage import scratch
from ml_core.dataset.fingerprint import Fingerprint, FingerprintBuilder
from ml_core.dataset.near_duplicates import MOST_COMPARED, near_duplicate_groups
from ml_core.dataset.pairing import Issue, Pairing, find_pairs
from ml_core.dataset.patients import BY_NAME, groups_of_names
from ml_core.dataset.splits import Split
from ml_core.errors import ImageError, MLError
from ml_core.io.containers import ArchiveError, ArchiveLimits, SafeArchive
from uploads.verification import UploadDamagedError, checked_sha256

LEAST_PAIRS = 2
MOST_ISSUES = 1_000  # kept; the rest is counted
MOST_CLASSES = 128
ROWS_AT_ONCE = 500
RARE_SHARE = 1e-5


class DatasetRefusedError(MLError):
    """The archive was read, but there is no dataset in it."""

    def __init__(self, reason: str, cure: str, issues: list[Issue]) -> None:
        super().__init__("refused", reason, cure)
        self.issues = issues


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
    checked, issues = _check_all(job, folder, base)
    dimensions, samples = _same_dimensions(checked, issues)
    if len(samples) < LEAST_PAIRS:
        raise _refusal(len(samples), issues)
    changes = changes_of(samples, base)
    if base and changes["kept"] == base.dataset.file_count == len(samples):
        raise _nothing_new(base, issues)
    fingerprint = checked.builders[dimensions].result()
    classes = checked.classes.rows({entry.value for entry in fingerprint.classes})
    _check_classes(fingerprint, issues)
    _group_by_names(samples, issues)
    with job.kept_alive():
        duplicates = _near_duplicates(samples, issues)
    job.beat(force=True)  # the last moment to notice a wish to cancel
    split = split_of(samples, duplicates, base)
    columns: dict[str, Any] = {
        "file_count": len(samples),
        "modality": fingerprint.modality[:32],
        "dimensions": dimensions,
        "channels": fingerprint.channels,
        "changes": changes,
        "fingerprint": replace(fingerprint, grouping=split.grouping, mask_codes=checked.classes.codes()).to_json(),
        **_issue_columns(issues),
    }
    # Samples first, for their manifest tells their numbers; the dataset is not ready before that lies in storage.
    with transaction.atomic():
        job.update(progress={})
        Sample.objects.filter(dataset=dataset).delete()
        DatasetClass.objects.filter(dataset=dataset).delete()
        rows = _sample_rows(dataset, samples, split)
        while some := list(islice(rows, ROWS_AT_ONCE)):  # memory must not grow with their number
            Sample.objects.bulk_create(some)
        DatasetClass.objects.bulk_create(DatasetClass(dataset=dataset, **row) for row in classes)
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


class _Checked:
    """What came out of the pairs, by number of dimensions."""

    def __init__(self, classes: ClassTable) -> None:
        self.samples: list[CheckedSample] = []
        self.builders: dict[int, FingerprintBuilder] = {2: FingerprintBuilder(), 3: FingerprintBuilder()}
        self.classes = classes


def _base_of(dataset: Dataset) -> Base | None:
    base = Base.of(dataset) if dataset.based_on is not None else None
    if dataset.based_on is not None and base is None:
        reason = f"Version {dataset.based_on}, which this one is based on, was deleted."
        raise DatasetRefusedError(reason, "Upload all images and masks as a new dataset.", [])
    return base


def _check_all(job: Claim[Dataset], folder: Path, base: Base | None) -> tuple[_Checked, list[Issue]]:
    """The archive's pairs, and of a later version the samples that stay. One that only leaves some out has no archive."""
    dataset = job.row
    limits = ArchiveLimits(max_expanded_bytes=settings.MEDSEG_MAX_EXPANDED_BYTES)
    has_archive = bool(dataset.s3_key or dataset.source_url)
    with SafeArchive(_bring_archive(job, folder), limits) if has_archive else nullcontext() as archive:
        pairing = find_pairs(archive.sizes) if archive else Pairing([], [])
        issues = list(pairing.issues)
        if archive and not pairing.pairs:
            raise _refusal(0, issues)
        checked = _Checked(base.class_table() if base else ClassTable())
        _check_items(job, folder, archive, merge(base, pairing.pairs), checked, issues)
    return checked, issues


def _check_items(
    job: Claim[Dataset],
    folder: Path,
    archive: SafeArchive | None,
    merged: Merged,
    checked: _Checked,
    issues: list[Issue],
) -> None:
    items = merged.items
    first_with: dict[str, str] = {}

    def note(sample: CheckedSample) -> None:
        issues.extend(sample.issues)
        twin = first_with.setdefault(sample.image.sha256, sample.name)
        if twin != sample.name:
            text = f"The image is the same as that of {twin}. Leave one of them out, or the numbers will flatter."
            issues.append(Issue("warning", "duplicate_image", sample.file, text))
        checked.samples.append(sample)

    prefix = storage.object_key("datasets", job.row.uuid, "samples")
    # Kept alive, for one large volume can take longer to read, or slow storage to take, than a heartbeat may be silent.
    with job.kept_alive(), PairPipeline(archive, folder, prefix, min(len(items), MOST_COMPARED)) as pipeline:
        for position, item, read in pipeline.read(items):
            job.beat({"stage": "checking", "done": position, "total": len(items), "fraction": position / len(items)})
            earlier = merged.instead_of.get(item.name[:300])
            try:
                known = pipeline.know(read, checked.classes, checked.builders, earlier, merged.dimensions)
            except (ArchiveError, ImageError) as error:
                issues.append(Issue("error", error.code, error.file or item.name, str(error)))
                if earlier is None:
                    continue
                issues.append(Issue("warning", "not_replaced", item.name, "The sample of the version before stays."))
                known = pipeline.know(partial(read_kept, earlier), checked.classes, checked.builders)
            finally:
                del read  # its pixels
            for sample in pipeline.store(known, position):
                note(sample)
            if len(checked.classes) > MOST_CLASSES:
                cure = "Store every class as one number in the mask, without smoothing or lossy compression."
                raise DatasetRefusedError(f"The masks hold more than {MOST_CLASSES} different values.", cure, issues)
        for sample in pipeline.rest():
            job.beat()
            note(sample)


def _same_dimensions(checked: _Checked, issues: list[Issue]) -> tuple[int, list[CheckedSample]]:
    """Pictures and volumes cannot be trained together: the larger party stays, each of the others becomes an issue."""
    flat = sum(len(sample.shape) == 2 for sample in checked.samples)
    dimensions = 2 if flat >= len(checked.samples) - flat else 3
    kept = []
    for sample in checked.samples:
        if len(sample.shape) == dimensions:
            kept.append(sample)
        else:
            storage.delete_prefix(sample.image.key.rpartition("/")[0])
            error = mixed_dimensions(dimensions)
            issues.append(Issue("error", error.code, sample.name, str(error)))
    return dimensions, kept


def _group_by_names(samples: list[CheckedSample], issues: list[Issue]) -> None:
    """Patients as the names tell, where nothing else does. Of a later version all names are looked at again."""
    if any(not sample.group.startswith(BY_NAME) for sample in samples if sample.group):
        return
    for sample, group in zip(samples, groups_of_names([sample.name for sample in samples]), strict=True):
        sample.group = group
    sizes = Counter(sample.group for sample in samples if sample.group)
    if not sizes:
        return
    [(largest, most)] = sizes.most_common(1)
    text = (
        f"By their names the images come from {count_of(len(sizes), 'patient')}, such as {largest.removeprefix(BY_NAME)} with "
        f"{count_of(most, 'image')}. Each patient stays on one side of the split. If that is wrong, number the files in another "
        "way and upload again."
    )
    issues.append(Issue("warning", "grouped_by_name", "images", text))


def _near_duplicates(samples: list[CheckedSample], issues: list[Issue]) -> list[int] | None:
    """A number per sample, equal for those that are one picture: they stay on one side of the split. None: not compared."""
    if len(samples) > MOST_COMPARED:
        text = f"There are more than {MOST_COMPARED:,} cases, so they were not searched for copies of one another."
        issues.append(Issue("warning", "not_compared", "images", text))
        return None
    groups = near_duplicate_groups([sample.signature for sample in samples])
    first: dict[int, CheckedSample] = {}
    files: set[str] = set()
    for sample, group in zip(samples, groups, strict=True):
        twin = first.setdefault(group, sample)
        is_again = sample.image.sha256 in files  # the same file is a duplicate_image already
        files.add(sample.image.sha256)
        if twin is sample or is_again:
            continue
        text = (
            f"{sample.name} and {twin.name} look like one picture (copied, scaled, brightened, turned, or the next slice). "
            "They stay on one side of the split; leave one out unless both are cases of their own."
        )
        issues.append(Issue("warning", "near_duplicate", sample.name, text))
    return groups


def _check_classes(fingerprint: Fingerprint, issues: list[Issue]) -> None:
    found = fingerprint.classes
    if len(found) < 2:
        reason = f"All masks hold the one value {found[0].value}, so there is nothing to tell apart."
        raise DatasetRefusedError(reason, "Check that the masks were exported with the structures drawn in.", issues)
    for entry in found:
        if entry.share < RARE_SHARE:
            text = (
                f"The mask value {entry.value} covers only {count_of(entry.pixels, 'pixel')} in {count_of(entry.cases, 'case')}. "
                "If it is a stray value and no class, correct the masks and upload again."
            )
            issues.append(Issue("warning", "rare_value", "masks", text))


def _refusal(good: int, issues: list[Issue]) -> DatasetRefusedError:
    errors = [issue for issue in issues if issue.severity == "error"]
    found = "None of the images could be used" if not good else "Only one image with its mask could be used"
    reason = f"{found}, and {LEAST_PAIRS} pairs are needed."
    first = (
        f"The first problem: {errors[0].file}: {errors[0].detail}"
        if errors
        else "Add images with masks of the same names."
    )
    return DatasetRefusedError(reason, first, issues)


def _nothing_new(base: Base, issues: list[Issue]) -> DatasetRefusedError:
    errors = [issue for issue in issues if issue.severity == "error"]
    reason = f"This would change nothing of version {base.dataset.version}."
    cure = "Add pairs that are new or differ from those of the same name, or name samples to leave out."
    return DatasetRefusedError(
        reason, f"The first problem: {errors[0].file}: {errors[0].detail}" if errors else cure, issues
    )


def _issue_columns(issues: list[Issue]) -> dict[str, Any]:
    ordered = sorted(issues, key=lambda issue: issue.severity != "error")
    rows = [
        {"severity": i.severity, "code": i.code, "file": i.file[:500], "detail": i.detail[:1000]}
        for i in ordered[:MOST_ISSUES]
    ]
    return {"issues": rows, "issue_count": len(issues)}
