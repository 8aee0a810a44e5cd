"""The worker's side of a training: bring the samples, run ml_core in a process of its own, keep what it makes."""

from __future__ import annotations

import json
import logging
import queue
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from datasets.models import Dataset, Sample
from medseg_site.shared import cache, manifests, storage
from medseg_site.shared import progress as events
from medseg_site.shared.jobs import CancelledError, Claim, ClaimLostError, claim
from ml_core.malloc_tuning import tuned_environment
from models_app.models import Epoch, SegmentationModel

log = logging.getLogger(__name__)

SECONDS_TO_STOP = 60  # for a cancelled training to keep its best weights in good order
SECONDS_BETWEEN_UPLOADS = 60
SECONDS_BETWEEN_MANIFESTS = 10


class TrainingFailedError(Exception):
    """Why a training ended without a model, and what to do."""


def train(pk: int) -> None:
    """Run one training, whatever happens: the row ends as completed, cancelled, or failed with the reason."""
    job = claim(SegmentationModel, pk)
    if job is None:
        return
    folder = storage.training_folder(job.row.uuid)
    try:
        _train(job, folder)
    except ClaimLostError:
        if not SegmentationModel.objects.filter(pk=pk).exists():
            storage.delete_prefix(storage.object_key("models", job.row.uuid))
            storage.forget_local(job.row.uuid)
    except CancelledError:  # before the first step
        job.cancel(progress={})
    except TrainingFailedError as error:
        job.fail(str(error))
    except Exception as error:
        log.exception("model %s", pk)
        job.fail(
            f"The training ended unexpectedly ({type(error).__name__}). Resume it; if it fails again, see the worker's log."
        )


def _train(job: Claim[SegmentationModel], folder: Path) -> None:
    dataset, job_file = job.row.dataset, folder / "job.json"
    if dataset is None:
        raise TrainingFailedError("The dataset was deleted. Upload it again and train on that.")
    folder.mkdir(parents=True, exist_ok=True)
    _bring_checkpoints(job.row, folder)
    try:
        with cache.decoded_in_use(dataset.uuid) as store:
            job_file.write_text(json.dumps(_job_document(job, dataset, folder, store)))
            outcome = _Run(job, folder, job_file).outcome()
    finally:
        shutil.rmtree(folder / "objects", ignore_errors=True)
    _keep(job, folder, outcome)


def _job_document(job: Claim[SegmentationModel], dataset: Dataset, folder: Path, store: Path) -> dict[str, Any]:
    """ml_core.job.TrainingJob, with every object as a local path that stays until the training's process has ended."""
    model = job.row
    cases, samples = [], list(dataset.samples.all())
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
            }
        )
    return {
        "cases": cases,
        "split": _stored_split(dataset, samples),
        "warm_start": _warm_start(model, folder),
        "classes": dataset.class_dicts(),
        "fingerprint": dataset.fingerprint,
        "hyperparameters": model.requested,
        "folder": str(folder),
        "store": str(store),
        "default_seconds": settings.MEDSEG_TRAINING_SECONDS,
        "facts": {
            "name": str(model),
            "uuid": str(model.uuid),
            "dataset": dataset.name,
            "dataset_sha256": dataset.checksum,
        },
    }


def _stored_split(dataset: Dataset, samples: list[Sample]) -> dict[str, Any] | None:
    """The dataset's own split, so that every training on it is compared on the same cases; None where the check made none."""
    if not all(sample.split for sample in samples):
        return None
    parts = {part: [sample.pk for sample in samples if sample.split == part] for part in ("train", "val", "test")}
    return {**parts, "grouping": dataset.fingerprint.get("grouping", "as stored")}


def _warm_start(model: SegmentationModel, folder: Path) -> str | None:
    """The package of the earlier model that the training starts from, as a local path."""
    asked = model.requested.get("warm_start")
    if not asked:
        return None
    earlier = SegmentationModel.objects.filter(pk=int(asked)).first() if asked.isdecimal() else None
    if earlier is None or not earlier.is_usable:
        raise TrainingFailedError(f"The model {asked} to start from is gone or has no weights. Choose another one.")
    return str(storage.fetch_into(folder / "objects", earlier.s3_key, earlier.checksum))


class _Run:
    """The child process: reads its events, beats, passes a cancel wish on, and never leaves it behind."""

    def __init__(self, job: Claim[SegmentationModel], folder: Path, job_file: Path) -> None:
        self.job, self.folder = job, folder
        self.progress: dict[str, Any] = {}
        self.uploaded_at = self.manifest_at = time.time()
        self.upload: threading.Thread | None = None
        self.errors = (folder / "stderr.txt").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ml_core", "train", "--job", str(job_file)],
            cwd=settings.BASE_DIR,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=tuned_environment(),
        )

    def outcome(self) -> dict[str, Any]:
        """The `done` event. Raises TrainingFailedError, or ClaimLostError after the child was ended."""
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=self._read, args=(lines,), daemon=True)
        reader.start()
        try:
            return self._follow(lines)
        finally:
            self.process.kill()
            self.process.wait()
            reader.join(timeout=10)
            if self.upload:
                self.upload.join()
            self.errors.close()

    def _read(self, lines: queue.Queue[str | None]) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            lines.put(line)
        lines.put(None)

    def _follow(self, lines: queue.Queue[str | None]) -> dict[str, Any]:
        stop_by: float | None = None
        while True:
            try:
                line = lines.get(timeout=0.5)
            except queue.Empty:
                line = ""
            if line is None:
                raise TrainingFailedError(self._why_it_died())
            if line and (end := self._handle(json.loads(line))):
                return end
            try:
                self.job.beat(self.progress or None)
            except CancelledError:
                if stop_by is None:
                    stop_by = time.monotonic() + SECONDS_TO_STOP
                    self._ask_to_stop()
            if stop_by and time.monotonic() > stop_by:
                return {"stopped": True, "package": None, "metrics": {}, "decisions": {}, "warnings": []}

    def _ask_to_stop(self) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write("stop\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has just ended by itself

    def _handle(self, event: dict[str, Any]) -> dict[str, Any] | None:
        kind = event.pop("type")
        if kind == "progress":
            self.progress = event
        elif kind == "plan":
            names = {
                "hyperparameters": event["hyperparameters"],
                "plan": event["plan"],
                "split": event["split"],
            }
            self.job.update(**names)
        elif kind == "estimate":
            self.job.update(estimate=event)
        elif kind == "start":
            Epoch.objects.filter(model=self.job.row, epoch__gt=event["epoch"]).delete()
        elif kind == "epoch":
            events.publish(self.job.row.KIND, self.job.row.pk, {"type": "epoch", **event})
            Epoch.objects.update_or_create(model=self.job.row, epoch=event.pop("epoch"), defaults=event)
            self._upload_checkpoints()
            self._keep_manifest()
        elif kind == "error":
            raise TrainingFailedError(f"{event['reason']} {event['cure']}".strip())
        elif kind == "done":
            return event
        return None

    def _upload_checkpoints(self) -> None:
        """Now and then, beside the training, so that another machine could go on with it."""
        busy = self.upload is not None and self.upload.is_alive()
        if storage.is_remote() and not busy and time.time() - self.uploaded_at > SECONDS_BETWEEN_UPLOADS:
            arguments = (self.job.row, self.folder, self.uploaded_at)
            self.uploaded_at = time.time()
            self.upload = threading.Thread(target=_store_checkpoints, args=arguments, daemon=True)
            self.upload.start()

    def _keep_manifest(self) -> None:
        """The curve so far, for a training that has to go on without this database. On S3 beside the checkpoints' upload."""
        if not storage.is_remote() and time.time() - self.manifest_at > SECONDS_BETWEEN_MANIFESTS:
            self.manifest_at = time.time()
            manifests.keep_up(self.job.row)

    def _why_it_died(self) -> str:
        code = self.process.wait()
        self.errors.seek(0)
        last = self.errors.read().decode(errors="replace").strip().splitlines()[-1:]
        log.error("training process of model %s ended with %s: %s", self.job.row.pk, code, last)
        if code == -9:
            reason = "The system ended the training process, most likely because memory ran out."
            return f"{reason} Choose a smaller batch or patch size, or a smaller encoder."
        what = last[0][:300] if last else f"exit code {code}"
        return f"The training process ended unexpectedly ({what}). Resume it; if it fails again, see the worker's log."


def _store_checkpoints(model: SegmentationModel, folder: Path, since: float = 0.0) -> None:
    """Those written after `since` (time.time()): best and latest of one network, or of each member_<number> of several."""
    try:
        for path in sorted(folder.rglob("*.safetensors")):
            if path.stat().st_mtime >= since:
                place = path.relative_to(folder).parts
                storage.store_file(storage.object_key("models", model.uuid, "checkpoints", *place), path)
        manifests.keep_up(model)
    except Exception:
        log.exception("checkpoints of model %s are not stored; the training goes on", model.pk)
    finally:
        if threading.current_thread() is not threading.main_thread():
            connection.close()  # of this thread


def _bring_checkpoints(model: SegmentationModel, folder: Path) -> None:
    """What an earlier attempt on another machine stored."""
    if not storage.is_remote() or any(folder.rglob("*.safetensors")):
        return
    prefix = storage.object_key("models", model.uuid, "checkpoints")
    for key in list(storage.keys_below(prefix)):
        target = folder / key.removeprefix(f"{prefix}/")
        target.parent.mkdir(exist_ok=True)
        shutil.move(storage.fetch(key), target)  # moved: the cache must not keep an old one under this key


def _keep(job: Claim[SegmentationModel], folder: Path, outcome: dict[str, Any]) -> None:
    """Objects first, then the row, then the local files away."""
    model = job.row
    columns: dict[str, Any] = {"warnings": outcome["warnings"], "progress": {}}
    with job.kept_alive():
        if outcome["package"]:
            stored = storage.store_file(storage.object_key("models", model.uuid, "model.zip"), Path(outcome["package"]))
            for picture in sorted((folder / "cases").glob("*.png")):
                storage.store_file(storage.object_key("models", model.uuid, "cases", picture.name), picture)
            columns |= {"s3_bucket": storage.bucket_name(), "s3_key": stored.key, "checksum": stored.sha256}
            columns |= {"metrics": outcome["metrics"], "decisions": outcome["decisions"], "trained_at": timezone.now()}
        if outcome["stopped"] and storage.is_remote():
            _store_checkpoints(model, folder)
        if not outcome["stopped"]:
            columns = manifests.store_done(model, columns)
    if outcome["stopped"]:
        job.cancel(**columns)
        return
    with transaction.atomic():
        job.finish(**columns)
    shutil.rmtree(folder, ignore_errors=True)
    storage.delete_prefix(storage.object_key("models", model.uuid, "checkpoints"))
