"""What can be asked of models: train, cancel, resume, delete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Max, QuerySet

from accounts import audit
from accounts.access import require
from datasets.models import Dataset
from datasets.services import why_not_trainable
from medseg_site.shared.base.errors import MedSegError, WrongStateError, refuse_if
from medseg_site.shared.base.text import clean_name, whole_number
from medseg_site.shared.catalogue import manifests, removal
from medseg_site.shared.jobs.messages import call_on_commit, send_on_commit
from medseg_site.shared.jobs.requests import request_cancel, requeue, why_not_requeueable
from medseg_site.shared.storage import objects as storage
from medseg_site.shared.storage import scratch
from ml_core.dataset.fingerprint import Fingerprint
from ml_core.planning.plan import Machine, Plan
from ml_core.planning.request import ConfigErrors, TrainingRequest
from ml_core.planning.rules import make_plan
from models_app.models import KEEP_WEIGHTS, SegmentationModel

RESUMABLE = ("epochs", "time_budget_seconds")  # what may change when a training goes on


class HyperparametersError(MedSegError):
    """Hyperparameters that cannot be used: `fields` is name → sentence."""

    def __init__(self, fields: dict[str, str]) -> None:
        self.fields = fields
        text = " ".join(f"{name}: {sentence}" for name, sentence in fields.items())
        super().__init__("invalid_hyperparameters", text, attr="hyperparameters")


def why_not_usable(model: SegmentationModel) -> str | None:
    """Why no image can be segmented with a model now; None where one can."""
    if model.is_usable:
        return None
    return f"{model} is {model.status} and has no weights{' yet' if model.is_active else ''}."


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
    key = whole_number(number)
    return key is not None and usable_models(user).filter(pk=key).exists()


def preview_plan(*, user: Any, dataset: Dataset, hyperparameters: Mapping[str, object]) -> Plan:
    """The plan with its reasons, nearly as the training will make it: of the machine only what can be told without torch.

    Raises HyperparametersError, or WrongStateError for a dataset that is not ready.
    """
    wanted = check_hyperparameters(user=user, values=hyperparameters)
    refuse_if(why_not_trainable(dataset))
    fingerprint, seconds = Fingerprint.from_json(dataset.fingerprint), settings.MEDSEG_TRAINING_SECONDS
    try:
        return make_plan(wanted, fingerprint, dataset.class_dicts(), Machine.guess(), default_seconds=seconds)
    except ConfigErrors as error:
        raise HyperparametersError(error.fields) from None


def create_model(*, user: Any, name: str, dataset: Dataset, hyperparameters: Mapping[str, object]) -> SegmentationModel:
    """Queue a training, in the dataset's project. A second model of the same name there becomes its next version."""
    require(user, "change", dataset)
    name = clean_name(name)
    requested = check_hyperparameters(user=user, values=hyperparameters).to_json()
    for _ in range(5):
        try:
            with transaction.atomic():
                # The lock keeps the dataset from being deleted between this look and the new row.
                locked = Dataset.objects.select_for_update().filter(pk=dataset.pk).first()
                if locked is None:
                    raise WrongStateError("The dataset was deleted. Choose another one.")
                preview_plan(
                    user=user, dataset=locked, hyperparameters=requested
                )  # what cannot be planned is refused now
                namesakes = SegmentationModel.objects.filter(project=locked.project_id, name=name)
                latest = namesakes.aggregate(Max("version"))["version__max"] or 0
                model = SegmentationModel.objects.create(
                    created_by=user,
                    name=name,
                    version=latest + 1,
                    dataset=locked,
                    project_id=locked.project_id,
                    status=SegmentationModel.WORDS.queued,
                    requested=requested,
                    hyperparameters=requested,
                    classes=locked.class_dicts(),
                )
                manifests.keep_new(model)
                audit.record(user, "train", model)
                send_on_commit(model)
            return model
        except IntegrityError:
            continue  # somebody took this version a moment ago: take the next
    raise MedSegError("busy", "Too many trainings of this name start at once. Try again.", attr="name")


def cancel_model(*, user: Any, model: SegmentationModel) -> SegmentationModel:
    """Stop a training. One that nobody works on is cancelled at once; a worker then packages its best weights."""
    require(user, "change", model)
    with transaction.atomic():
        request_cancel(model)
        audit.record(user, "cancel", model)
    if model.are_weights_due:
        call_on_commit(KEEP_WEIGHTS, model.pk)
    return model


def why_not_resumable(*, user: Any, model: SegmentationModel) -> str | None:
    """Why a training cannot go on as it was asked for; None where it can."""
    if model.dataset is None:
        return "Its dataset was deleted, so the training cannot go on."
    if reason := why_not_requeueable(model):
        return reason
    try:
        check_hyperparameters(user=user, values=model.requested)
    except HyperparametersError as error:  # such as a model to start from that was deleted since
        return error.detail
    return None


def resume_model(
    *, user: Any, model: SegmentationModel, changes: Mapping[str, object] | None = None
) -> SegmentationModel:
    """Go on with a failed or cancelled training from its last checkpoint (from the start where there is none).

    changes: another number of `epochs` (in all) or `time_budget_seconds`, such as more than first asked for.
    """
    require(user, "change", model)
    changes = changes or {}
    if strange := set(changes) - set(RESUMABLE):
        text = "This cannot change after the training has started. Only epochs and time_budget_seconds can."
        raise HyperparametersError(dict.fromkeys(sorted(strange), text))
    requested = check_hyperparameters(user=user, values={**model.requested, **changes}).to_json()
    refuse_if(why_not_resumable(user=user, model=model))
    with transaction.atomic():
        requeue(model, requested=requested)
        audit.record(user, "resume", model)
    return model


def delete_model(*, user: Any, model: SegmentationModel) -> None:
    """Remove the row and its objects; inferences stay. Raises WrongStateError while it is in use."""
    require(user, "delete", model)
    owner = model.uuid
    prefix = storage.object_key("models", owner)
    refuse_if(why_not_deletable(SegmentationModel.objects.get(pk=model.pk)))
    with removal.deletion({SegmentationModel: [owner]}):
        locked = SegmentationModel.objects.select_for_update().get(pk=model.pk)
        refuse_if(why_not_deletable(locked))
        checksum = locked.checksum
        audit.record(user, "delete", locked)
        locked.delete()
        removal.remove_on_commit(SegmentationModel, [owner], lambda: storage.delete_prefix(prefix))
        transaction.on_commit(lambda: scratch.forget_local(owner), robust=True)
        transaction.on_commit(lambda: storage.forget_copies([checksum] if checksum else []), robust=True)


def why_not_deletable(model: SegmentationModel) -> str | None:
    """Why a model cannot be deleted now; None where it can."""
    if model.is_active:
        return "This model is being trained. Cancel the training first."
    if model.inferences.filter(status__in=["queued", "running"]).exists():
        return "Images are being segmented with this model. Wait until they are done."
    if model.batches.filter(status__in=["queued", "running"]).exists():
        return "A batch of images is being segmented with this model. Wait until it is done, or cancel it."
    return None
