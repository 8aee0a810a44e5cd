"""What can be asked of models: train, cancel, resume, delete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Max, QuerySet

from datasets.models import Dataset
from medseg_site.shared.base.errors import MedSegError, WrongStateError
from medseg_site.shared.base.text import clean_name
from medseg_site.shared.catalogue import manifests, removal
from medseg_site.shared.jobs.claim import enqueue_on_commit, request_cancel, requeue
from medseg_site.shared.storage import objects as storage
from ml_core.dataset.fingerprint import Fingerprint
from ml_core.planning.plan import Machine, Plan
from ml_core.planning.request import ConfigErrors, TrainingRequest
from ml_core.planning.rules import make_plan
from models_app.models import SegmentationModel
from models_app.tasks import train_model

RESUMABLE = ("epochs", "time_budget_seconds")  # what may change when a training goes on


class HyperparametersError(MedSegError):
    """Hyperparameters that cannot be used: `fields` is name → sentence."""

    def __init__(self, fields: dict[str, str]) -> None:
        self.fields = fields
        text = " ".join(f"{name}: {sentence}" for name, sentence in fields.items())
        super().__init__("invalid_hyperparameters", text, attr="hyperparameters")


def usable_models(user: Any) -> QuerySet[SegmentationModel]:
    """Models with weights: to segment with, and to start another training from."""
    return SegmentationModel.objects.visible_to(user).exclude(s3_key="")


def check_hyperparameters(*, user: Any, values: Mapping[str, object]) -> TrainingRequest:
    """What can be known without a dataset. `warm_start` may be a number too. Raises HyperparametersError."""
    start = values.get("warm_start")
    if isinstance(start, int) and not isinstance(start, bool):
        values = {**values, "warm_start": str(start)}
    try:
        wanted = TrainingRequest.from_json(values)
    except ConfigErrors as error:
        raise HyperparametersError(error.fields) from None
    if wanted.asks_for("warm_start") and not _is_usable_model(user, str(wanted.get("warm_start"))):
        text = "There is no model of yours with this number that has weights. Choose another one, or leave it out."
        raise HyperparametersError({"warm_start": text})
    return wanted


def _is_usable_model(user: Any, number: str) -> bool:
    # isdecimal() alone is true of other scripts' digits, and the database refuses numbers of more than 64 bits.
    is_number = number.isascii() and number.isdecimal() and len(number) < 19
    return is_number and usable_models(user).filter(pk=int(number)).exists()


def preview_plan(*, user: Any, dataset: Dataset, hyperparameters: Mapping[str, object]) -> Plan:
    """The plan with its reasons, nearly as the training will make it: of the machine only what can be told without torch.

    Raises HyperparametersError, or WrongStateError for a dataset that is not ready.
    """
    wanted = check_hyperparameters(user=user, values=hyperparameters)
    if dataset.status != "ready":
        raise WrongStateError(f"The dataset is {dataset.status}, not ready. Wait for its check, or mend what it found.")
    fingerprint, seconds = Fingerprint.from_json(dataset.fingerprint), settings.MEDSEG_TRAINING_SECONDS
    try:
        return make_plan(wanted, fingerprint, dataset.class_dicts(), Machine.guess(), default_seconds=seconds)
    except ConfigErrors as error:
        raise HyperparametersError(error.fields) from None


def create_model(*, user: Any, name: str, dataset: Dataset, hyperparameters: Mapping[str, object]) -> SegmentationModel:
    """Queue a training. A second model of the same name becomes its next version."""
    name = clean_name(name)
    requested = check_hyperparameters(user=user, values=hyperparameters).to_json()
    for _ in range(5):
        try:
            with transaction.atomic():
                # The lock keeps the dataset from being deleted between this look and the new row.
                locked = Dataset.objects.select_for_update().filter(pk=dataset.pk).first()
                if locked is None:
                    raise WrongStateError("The dataset is gone. Choose another one.")
                preview_plan(
                    user=user, dataset=locked, hyperparameters=requested
                )  # what cannot be planned is refused now
                latest = SegmentationModel.objects.filter(name=name).aggregate(Max("version"))["version__max"] or 0
                model = SegmentationModel.objects.create(
                    created_by=user,
                    name=name,
                    version=latest + 1,
                    dataset=locked,
                    status=SegmentationModel.WORDS.queued,
                    requested=requested,
                    hyperparameters=requested,
                    classes=locked.class_dicts(),
                )
                manifests.keep_new(model)
                enqueue_on_commit(train_model, model.pk)
            return model
        except IntegrityError:
            continue  # somebody took this version a moment ago: take the next
    raise MedSegError("busy", "Too many trainings of this name start at once. Try again.", attr="name")


def cancel_model(*, model: SegmentationModel) -> SegmentationModel:
    request_cancel(model)
    return model


def resume_model(
    *, user: Any, model: SegmentationModel, changes: Mapping[str, object] | None = None
) -> SegmentationModel:
    """Go on with a failed or cancelled training from its last checkpoint (from the start where there is none).

    changes: another number of `epochs` (in all) or `time_budget_seconds`, such as more than first asked for.
    """
    changes = changes or {}
    if strange := set(changes) - set(RESUMABLE):
        text = "It is settled since the training started. Only epochs and time_budget_seconds can change now."
        raise HyperparametersError(dict.fromkeys(sorted(strange), text))
    requested = check_hyperparameters(user=user, values={**model.requested, **changes}).to_json()
    with transaction.atomic():
        if model.dataset is None:
            raise WrongStateError("Its dataset was deleted, so the training cannot go on.")
        requeue(model, requested=requested)
        enqueue_on_commit(train_model, model.pk)
    return model


def delete_model(*, model: SegmentationModel) -> None:
    """Remove the row and its objects; inferences stay. Raises WrongStateError while it is in use."""
    owner = model.uuid
    prefix = storage.object_key("models", owner)
    _check_not_in_use(SegmentationModel.objects.get(pk=model.pk))
    with removal.deletion({SegmentationModel: [owner]}):
        locked = SegmentationModel.objects.select_for_update().get(pk=model.pk)
        _check_not_in_use(locked)
        checksum = locked.checksum
        locked.delete()
        removal.remove_on_commit(SegmentationModel, [owner], lambda: storage.delete_prefix(prefix))
        transaction.on_commit(lambda: storage.forget_local(owner), robust=True)
        transaction.on_commit(lambda: storage.forget_copies([checksum] if checksum else []), robust=True)


def _check_not_in_use(model: SegmentationModel) -> None:
    if model.is_active:
        raise WrongStateError("This model is being trained. Cancel the training first.")
    if model.inferences.filter(status__in=["queued", "running"]).exists():
        raise WrongStateError("Images are being segmented with this model. Wait until they are done.")
    if model.batches.filter(status__in=["queued", "running"]).exists():
        raise WrongStateError(
            "A batch of images is being segmented with this model. Wait until it is done, or cancel it."
        )
