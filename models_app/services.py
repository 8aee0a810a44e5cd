"""What can be asked of models: train, cancel, resume, delete."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Max, QuerySet

from accounts import audit
from accounts.access import require
from datasets.models import Dataset
from medseg_site.shared.base.errors import MedSegError, WrongStateError
from medseg_site.shared.base.text import clean_name
from medseg_site.shared.catalogue import manifests, removal
from medseg_site.shared.jobs.messages import call_on_commit, send_on_commit
from medseg_site.shared.jobs.requests import request_cancel, requeue
from medseg_site.shared.storage import objects as storage
from medseg_site.shared.storage import scratch
from ml_core.planning.hyperparameters import ConfigErrors, Hyperparameters
from ml_core.planning.plan import Machine, Plan
from ml_core.planning.rules import make_plan
from models_app.models import KEEP_WEIGHTS, SegmentationModel

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


def check_hyperparameters(*, user: Any, values: dict[str, Any]) -> Hyperparameters:
    """What can be known without a dataset. `warm_start` may be a number too. Raises HyperparametersError."""
    start = values.get("warm_start")
    if isinstance(start, int) and not isinstance(start, bool):
        values = {**values, "warm_start": str(start)}
    try:
        wanted = Hyperparameters.from_dict(values)
    except ConfigErrors as error:
        raise HyperparametersError(error.fields) from None
    if wanted.warm_start is not None and not _is_usable_model(user, wanted.warm_start):
        text = "There is no model of yours with this number that has weights. Choose another one, or leave it out."
        raise HyperparametersError({"warm_start": text})
    return wanted


def _is_usable_model(user: Any, number: str) -> bool:
    # isdecimal() alone is true of other scripts' digits, and the database refuses numbers of more than 64 bits.
    is_number = number.isascii() and number.isdecimal() and len(number) < 19
    return is_number and usable_models(user).filter(pk=int(number)).exists()


def preview_plan(*, user: Any, dataset: Dataset, hyperparameters: dict[str, Any]) -> Plan:
    """The plan with its reasons, nearly as the training will make it: of the machine only what can be told without torch.

    Raises HyperparametersError, or WrongStateError for a dataset that is not ready.
    """
    wanted = check_hyperparameters(user=user, values=hyperparameters)
    if dataset.status != "ready":
        raise WrongStateError(f"The dataset is {dataset.status}, not ready. Wait for its check, or mend what it found.")
    seconds = settings.MEDSEG_TRAINING_SECONDS
    try:
        return make_plan(wanted, dataset.fingerprint, dataset.class_dicts(), Machine.guess(), default_seconds=seconds)
    except ConfigErrors as error:
        raise HyperparametersError(error.fields) from None


def create_model(*, user: Any, name: str, dataset: Dataset, hyperparameters: dict[str, Any]) -> SegmentationModel:
    """Queue a training, in the dataset's project. A second model of the same name there becomes its next version."""
    require(user, "change", dataset)
    name = clean_name(name)
    requested = check_hyperparameters(user=user, values=hyperparameters).to_dict()
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


def resume_model(*, user: Any, model: SegmentationModel, changes: dict[str, Any] | None = None) -> SegmentationModel:
    """Go on with a failed or cancelled training from its last checkpoint (from the start where there is none).

    changes: another number of `epochs` (in all) or `time_budget_seconds`, such as more than first asked for.
    """
    require(user, "change", model)
    changes = changes or {}
    if strange := set(changes) - set(RESUMABLE):
        text = "It is settled since the training started. Only epochs and time_budget_seconds can change now."
        raise HyperparametersError(dict.fromkeys(sorted(strange), text))
    requested = check_hyperparameters(user=user, values={**model.requested, **changes}).to_dict()
    with transaction.atomic():
        if model.dataset is None:
            raise WrongStateError("Its dataset was deleted, so the training cannot go on.")
        requeue(model, requested=requested)
        audit.record(user, "resume", model)
    return model


def delete_model(*, user: Any, model: SegmentationModel) -> None:
    """Remove the row and its objects; inferences stay. Raises WrongStateError while it is in use."""
    require(user, "delete", model)
    owner = model.uuid
    prefix = storage.object_key("models", owner)
    _check_not_in_use(SegmentationModel.objects.get(pk=model.pk))
    with removal.deletion({SegmentationModel: [owner]}):
        locked = SegmentationModel.objects.select_for_update().get(pk=model.pk)
        _check_not_in_use(locked)
        checksum = locked.checksum
        audit.record(user, "delete", locked)
        locked.delete()
        removal.remove_on_commit(SegmentationModel, [owner], lambda: storage.delete_prefix(prefix))
        transaction.on_commit(lambda: scratch.forget_local(owner), robust=True)
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
