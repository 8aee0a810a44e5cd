"""Everything that can be done with models: train, cancel, resume, delete. Pages, API and admin call these functions."""

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

# Only these hyperparameters may change when a training is resumed.
RESUMABLE = ("epochs", "time_budget_seconds")


class HyperparametersError(MedSegError):
    """Some hyperparameters cannot be used. `fields` maps each name to a sentence that says why."""

    def __init__(self, fields: dict[str, str]) -> None:
        self.fields = fields
        text = " ".join(f"{name}: {sentence}" for name, sentence in fields.items())
        super().__init__("invalid_hyperparameters", text, attr="hyperparameters")


def why_not_usable(model: SegmentationModel) -> str | None:
    """The reason why no image can be segmented with the model now; None when one can."""
    if model.is_usable:
        return None
    if model.is_active:
        return f"{model} is {model.status} and has no weights yet. Wait for its training."
    if model.are_weights_due:
        return f"The weights of {model} are being packaged. Wait a moment, and try again."
    return f"{model} is {model.status} and has no weights. Resume its training, or use another model."


def usable_models(user: Any) -> QuerySet[SegmentationModel]:
    """The models with weights. Images can be segmented with them, and trainings can start from them."""
    return SegmentationModel.objects.visible_to(user).exclude(s3_key="")


def check_hyperparameters(*, user: Any, values: Mapping[str, object]) -> TrainingRequest:
    """Check everything that can be checked without a dataset. `warm_start` is the id of a model, as a text or a number.

    Raises HyperparametersError.
    """
    start = values.get("warm_start")
    if isinstance(start, int) and not isinstance(start, bool):
        values = {**values, "warm_start": str(start)}
    try:
        request = TrainingRequest.from_json(values)
    except ConfigErrors as error:
        raise HyperparametersError(error.fields) from None
    if request.asks_for("warm_start") and not _is_usable_model(user, str(request.get("warm_start"))):
        text = "You have no model with this number that has weights. Choose another one, or leave it out."
        raise HyperparametersError({"warm_start": text})
    return request


def _is_usable_model(user: Any, number: str) -> bool:
    key = whole_number(number)
    return key is not None and usable_models(user).filter(pk=key).exists()


def preview_plan(*, user: Any, dataset: Dataset, hyperparameters: Mapping[str, object]) -> Plan:
    """The plan of a training with its reasons, without starting it.

    The training's own plan may differ a little, because here the machine is only guessed, without torch. Raises
    HyperparametersError, or WrongStateError when the dataset is not ready.
    """
    request = check_hyperparameters(user=user, values=hyperparameters)
    refuse_if(why_not_trainable(dataset))
    fingerprint, seconds = Fingerprint.from_json(dataset.fingerprint), settings.MEDSEG_TRAINING_SECONDS
    try:
        return make_plan(request, fingerprint, dataset.class_dicts(), Machine.guess(), default_seconds=seconds)
    except ConfigErrors as error:
        raise HyperparametersError(error.fields) from None


def create_model(*, user: Any, name: str, dataset: Dataset, hyperparameters: Mapping[str, object]) -> SegmentationModel:
    """Queue a training in the project of the dataset. A second model of the same name there becomes its next version.

    Raises HyperparametersError, and WrongStateError when the dataset is not ready or was deleted.
    """
    require(user, "change", dataset)
    name = clean_name(name)
    requested = check_hyperparameters(user=user, values=hyperparameters).to_json()
    for _ in range(5):
        try:
            with transaction.atomic():
                # The lock keeps the dataset from being deleted before the new row names it.
                locked = Dataset.objects.select_for_update().filter(pk=dataset.pk).first()
                if locked is None:
                    raise WrongStateError("The dataset was deleted. Choose another one.")
                # Hyperparameters that cannot be planned are refused now, not by the worker.
                preview_plan(user=user, dataset=locked, hyperparameters=requested)
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
            # Somebody else took this version a moment ago, so the next one is tried.
            continue
    raise MedSegError("busy", "Too many trainings of this name start at once. Try again.", attr="name")


def cancel_model(*, user: Any, model: SegmentationModel) -> SegmentationModel:
    """Stop a training. If no worker has it, it is cancelled at once, and a worker packages its best weights later.

    Raises WrongStateError when it has ended already.
    """
    require(user, "change", model)
    with transaction.atomic():
        request_cancel(model)
        audit.record(user, "cancel", model)
    if model.are_weights_due:
        call_on_commit(KEEP_WEIGHTS, model.pk)
    return model


def why_not_resumable(*, user: Any, model: SegmentationModel) -> str | None:
    """The reason why the training cannot be resumed with its hyperparameters; None when it can."""
    if model.dataset is None:
        return "Its dataset was deleted, so the training cannot go on."
    if reason := why_not_requeueable(model):
        return reason
    try:
        check_hyperparameters(user=user, values=model.requested)
    # The model to start from may have been deleted since.
    except HyperparametersError as error:
        return error.detail
    return None


def resume_model(
    *, user: Any, model: SegmentationModel, changes: Mapping[str, object] | None = None
) -> SegmentationModel:
    """Resume a failed or cancelled training from its last checkpoint, or from the start when there is none.

    `changes` may set other totals for `epochs` and `time_budget_seconds`, for instance more than were first asked for.
    Raises HyperparametersError for any other name or a bad value, and WrongStateError when it cannot be resumed.
    """
    require(user, "change", model)
    changes = changes or {}
    if unknown := set(changes) - set(RESUMABLE):
        text = "This cannot change after the training has started. Only epochs and time_budget_seconds can."
        raise HyperparametersError(dict.fromkeys(sorted(unknown), text))
    requested = check_hyperparameters(user=user, values={**model.requested, **changes}).to_json()
    refuse_if(why_not_resumable(user=user, model=model))
    with transaction.atomic():
        requeue(model, requested=requested)
        audit.record(user, "resume", model)
    return model


def delete_model(*, user: Any, model: SegmentationModel) -> None:
    """Remove the row and its objects. Inferences stay. Raises WrongStateError while the model is in use."""
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
    """The reason why the model cannot be deleted now; None when it can."""
    if model.is_active:
        return "This model is being trained. Cancel the training first."
    if model.inferences.filter(status__in=["queued", "running"]).exists():
        return "Images are being segmented with this model. Wait until they are done."
    if model.batches.filter(status__in=["queued", "running"]).exists():
        return "A batch of images is being segmented with this model. Wait until it is done, or cancel it."
    return None
