"""The worker's side of a training: fetch the samples, run ml_core in a process of its own, and store its results."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.files.storage import default_storage
from django.db import connection, transaction
from django.utils import timezone

from datasets.models import Dataset
from medseg_site.shared.base.text import whole_number
from medseg_site.shared.catalogue import manifests
from medseg_site.shared.jobs.claim import CancelledError, Claim
from medseg_site.shared.jobs.messages import call_on_commit
from medseg_site.shared.jobs.run import Work, run
from medseg_site.shared.storage import cache, scratch
from medseg_site.shared.storage import objects as storage
from ml_core.dataset.fingerprint import Fingerprint
from ml_core.prediction.decisions import Decisions
from ml_core.training.events import Done
from models_app.models import KEEP_WEIGHTS, SegmentationModel
from models_app.training_process import TrainingFailedError, TrainingKilledError, TrainingProcess

log = logging.getLogger(__name__)

SECONDS_BETWEEN_MANIFESTS = 10
NOT_PACKAGED = Done(True, None, None, Decisions(), [])


def train(pk: int) -> None:
    """Run one training.

    The row then ends as completed, as cancelled, or as failed with the reason, or it is queued for another attempt.
    """
    run(_Training(), pk)


class _Training(Work[SegmentationModel]):
    model = SegmentationModel
    UNEXPECTED = "The training ended unexpectedly ({error}). Resume it; if it fails again, see its log."

    def do(self, job: Claim[SegmentationModel]) -> None:
        folder = scratch.training_folder(job.row.uuid)
        try:
            _train(job, folder)
        except TrainingKilledError as error:
            if error.out_of_memory:
                _lower_batch(job, folder)
            raise

    def refusal_of(self, row: SegmentationModel, error: Exception) -> str | None:
        return str(error) if isinstance(error, TrainingFailedError) else None

    def forget(self, row: SegmentationModel) -> None:
        storage.delete_prefix(storage.object_key("models", row.uuid))
        scratch.forget_local(row.uuid)


def _train(job: Claim[SegmentationModel], folder: Path) -> None:
    dataset = job.row.dataset
    if dataset is None:
        raise TrainingFailedError("The dataset was deleted. Upload it again and train on that.")
    folder.mkdir(parents=True, exist_ok=True)
    with job.kept_alive():
        bring_checkpoints(job.row, folder)
    progress = _KeptProgress(job.row, folder)
    try:
        with cache.decoded_in_use(dataset.uuid) as store:
            document = job_document(job.row, dataset, folder, store)
            done = _result(job, dataset, folder, document, progress.after_epoch)
    finally:
        # It may take long to send the last checkpoint over a slow line.
        with job.kept_alive():
            progress.wait()
            shutil.rmtree(folder / "objects", ignore_errors=True)
    _keep(job, folder, done)


def _result(
    job: Claim[SegmentationModel],
    dataset: Dataset,
    folder: Path,
    document: dict[str, Any],
    after_epoch: Callable[[], None],
) -> Done:
    """Run the training process and return its result.

    The result is NOT_PACKAGED when the training was cancelled before it began, or hung after it was asked to stop.
    """
    try:
        # It may take long to fetch one large object over a slow line.
        with job.kept_alive():
            objects = _bring_objects(job, dataset, folder)
    except CancelledError:
        return NOT_PACKAGED
    job.log.add(f"{len(objects['cases'])} samples are on this machine")
    # From here on there may be checkpoints that no package holds.
    job.row.weights_due = True
    job.update(weights_due=True)
    done = TrainingProcess(job, write_job(folder, document | objects), after_epoch).result()
    if done is None:
        kept = (
            "its best weights so far are kept"
            if any(folder.rglob("best.safetensors"))
            else "no weights were on the disk yet"
        )
        job.note("note", f"The training process did not answer and was killed; {kept}.")
    return done or NOT_PACKAGED


def write_job(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "job.json"
    path.write_text(json.dumps(document))
    return path


def _limits(folder: Path) -> dict[str, Any]:
    """The limits that earlier attempts found on this machine: {"batch": the largest batch size to try}."""
    path = folder / "limits.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _lower_batch(job: Claim[SegmentationModel], folder: Path) -> None:
    batch = int(job.row.plan.get("batch_size", 0)) // 2
    if batch >= 2:
        part = folder / ".limits.part"
        part.write_text(json.dumps({"batch": batch}))
        part.replace(folder / "limits.json")


def job_document(model: SegmentationModel, dataset: Dataset, folder: Path, store: Path) -> dict[str, Any]:
    """The JSON form of ml_core.training.job.TrainingJob, without the files that have to be fetched first."""
    return {
        "cases": [],
        "split": _stored_split(dataset),
        "earlier_split": model.split,
        "classes": dataset.class_dicts(),
        "fingerprint": dataset.fingerprint,
        "hyperparameters": model.requested,
        "folder": str(folder),
        "store": str(store),
        "default_seconds": settings.MEDSEG_TRAINING_SECONDS,
        "plan": model.plan,
        "batch_limit": _limits(folder).get("batch"),
        "facts": {
            "name": str(model),
            "uuid": str(model.uuid),
            "dataset": dataset.name,
            "dataset_version": dataset.version,
            "dataset_sha256": dataset.checksum,
        },
    }


def _bring_objects(job: Claim[SegmentationModel], dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Fetch every object that the training reads. The local paths stay until its process has ended.

    Raises CancelledError, and TrainingFailedError when an object is missing.
    """
    cases, samples = [], list(dataset.samples.all())
    # Masks are stored in label values, except for the numbers of objects, which are all one class.
    codes = Fingerprint.from_json(dataset.fingerprint).mask_codes if dataset.kind == "instances" else {}
    for position, sample in enumerate(samples):
        share = position / len(samples)
        job.beat(
            {
                "stage": "preparing",
                "done": position,
                "total": len(samples),
                "fraction": 0.0,
                "prepared": share,
                "step": 0,
                "epoch": 0,
            }
        )
        try:
            image = storage.fetch_into(folder / "objects", sample.image_key, sample.image_sha256)
            mask = storage.fetch_into(folder / "objects", sample.mask_key, sample.mask_sha256)
        except FileNotFoundError:
            raise TrainingFailedError(f"{sample.name} is not in storage any more. Upload the dataset again.") from None
        cases.append(
            {
                "id": sample.pk,
                "name": sample.name,
                "image": str(image),
                "mask": str(mask),
                "group": sample.patient_group,
                "key": f"{sample.image_sha256} {sample.mask_sha256}",
                "codes": codes,
            }
        )
    return {"cases": cases, "warm_start": _warm_start(job.row, folder)}


def _stored_split(dataset: Dataset) -> dict[str, Any] | None:
    """The split of the dataset, so that all its trainings are compared on the same cases. None when it has no split."""
    samples = list(dataset.samples.only("split"))
    if not all(sample.split for sample in samples):
        return None
    parts = {part: [sample.pk for sample in samples if sample.split == part] for part in ("train", "val", "test")}
    return {**parts, "grouping": Fingerprint.from_json(dataset.fingerprint).grouping}


def _warm_start(model: SegmentationModel, folder: Path) -> str | None:
    """Fetch the package of the model that the training starts from. None when it starts from no model.

    Raises TrainingFailedError when that model was deleted or has no weights.
    """
    asked = model.requested.get("warm_start")
    if not asked:
        return None
    number = whole_number(asked)
    earlier = None if number is None else SegmentationModel.objects.filter(pk=number).first()
    if earlier is None or not earlier.is_usable:
        raise TrainingFailedError(f"The model {asked} to start from is gone or has no weights. Choose another one.")
    return str(storage.fetch_into(folder / "objects", earlier.s3_key, earlier.checksum))


class _KeptProgress:
    """Stores the progress of a training now and then, so that another machine or a restored database can go on with it.

    With S3, a thread beside the training stores the checkpoints and the manifest. A local folder holds the checkpoints
    already, so only the manifest is stored.
    """

    def __init__(self, model: SegmentationModel, folder: Path) -> None:
        self.model, self.folder, self.begun = model, folder, time.monotonic()
        # What this attempt has stored. An earlier one may have written checkpoints that it did not get to store.
        self.stored: dict[Path, int] = {}
        self.thread: threading.Thread | None = None

    def after_epoch(self) -> None:
        passed = time.monotonic() - self.begun
        if storage.is_remote():
            busy = self.thread is not None and self.thread.is_alive()
            if not busy and passed > settings.MEDSEG_CHECKPOINT_SECONDS:
                self.begun = time.monotonic()
                self.thread = threading.Thread(
                    target=_store_checkpoints, args=(self.model, self.folder, self.stored), daemon=True
                )
                self.thread.start()
        elif passed > SECONDS_BETWEEN_MANIFESTS:
            self.begun = time.monotonic()
            manifests.keep_up(self.model)

    def wait(self) -> None:
        if self.thread:
            self.thread.join()


def _store_checkpoints(model: SegmentationModel, folder: Path, stored: dict[Path, int] | None = None) -> None:
    """Store the best and the latest checkpoint of the network, or of each network in a folder member_<number>.

    The training replaces the files meanwhile, so hard links to them are stored. `latest` is linked first, so that
    `best` is never older than `latest` says. `stored` maps each path to the time of its last change (ns); this function
    adds to it. A file that has not changed is skipped. A file that could not be stored is tried again the next time.
    """
    stored = {} if stored is None else stored
    try:
        with scratch.scratch_folder("checkpoints") as links:
            changed: dict[Path, int] = {}
            for path in sorted(folder.rglob("*.safetensors"), reverse=True):
                changed[path] = path.stat().st_mtime_ns
                if changed[path] != stored.get(path):
                    cache.link(path, links / path.relative_to(folder))
            for link in sorted(links.rglob("*.safetensors")):
                place = link.relative_to(links)
                storage.store_file(storage.object_key("models", model.uuid, "checkpoints", *place.parts), link)
                stored[folder / place] = changed[folder / place]
        manifests.keep_up(model)
    except Exception:
        log.exception("checkpoints of model %s are not stored; the training goes on", model.pk)
    finally:
        if threading.current_thread() is not threading.main_thread():
            # Every thread has a database connection of its own.
            connection.close()


def bring_checkpoints(model: SegmentationModel, folder: Path) -> None:
    """Fetch the checkpoints that an earlier attempt on another machine stored."""
    if not storage.is_remote():
        return
    prefix = storage.object_key("models", model.uuid, "checkpoints")
    for key in list(storage.keys_below(prefix)):
        target = folder / key.removeprefix(f"{prefix}/")
        if target.exists() and default_storage.get_modified_time(key).timestamp() < target.stat().st_mtime:
            # This machine worked on the training last, and got further than what it stored.
            continue
        target.parent.mkdir(exist_ok=True)
        # The file is moved, because the cache must not keep an old checkpoint under this key.
        shutil.move(storage.fetch(key), target)


def store_package(model: SegmentationModel, path: Path) -> storage.StoredObject:
    """Store the package under a key that holds its checksum.

    A resumed training thus does not overwrite its earlier package, which is in use until the row names the new one.
    """
    with path.open("rb") as file:
        sha256, _ = storage.sha256_of(file)
    return storage.store_file(storage.object_key("models", model.uuid, f"model-{sha256[:16]}.zip"), path)


def _keep(job: Claim[SegmentationModel], folder: Path, done: Done) -> None:
    """Store the objects, then write the row, then remove the local files."""
    model = job.row
    columns: dict[str, Any] = {"warnings": done.warnings, "progress": {}}
    if done is not NOT_PACKAGED:
        columns["weights_due"] = False
    with job.kept_alive():
        if done.package:
            stored = store_package(model, Path(done.package))
            for picture in sorted((folder / "cases").glob("*.png")):
                storage.store_file(storage.object_key("models", model.uuid, "cases", picture.name), picture)
            columns |= {"s3_bucket": storage.bucket_name(), "s3_key": stored.key, "checksum": stored.sha256}
            columns |= {
                "metrics": done.metrics.to_json() if done.metrics else {},
                "decisions": done.decisions.to_json(),
            }
            columns["trained_at"] = timezone.now()
        if done.stopped and storage.is_remote():
            _store_checkpoints(model, folder)
        if not done.stopped:
            columns = manifests.store_done(model, columns | job.last_words())
    earlier = model.s3_key if columns.get("s3_key", model.s3_key) != model.s3_key else ""
    with transaction.atomic():
        if done.stopped:
            job.cancel(**columns)
            if done is NOT_PACKAGED and model.weights_due:
                call_on_commit(KEEP_WEIGHTS, model.pk)
        else:
            job.finish(**columns)
        # The earlier package of a resumed training is removed once the manifest written here no longer names it.
        if earlier:
            transaction.on_commit(partial(storage.delete_object, earlier), robust=True)
    if done.stopped:
        return
    shutil.rmtree(folder, ignore_errors=True)
    storage.delete_prefix(storage.object_key("models", model.uuid, "checkpoints"))
