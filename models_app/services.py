"""What can be asked of models: train, cancel, resume, delete."""

from __future__ import annotations

from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Max

from datasets.models import Dataset
from medseg_site.shared import storage
from medseg_site.shared.errors import MedSegError, WrongStateError
from medseg_site.shared.jobs import enqueue_on_commit, request_cancel, requeue
from medseg_site.shared.text import clean_name
from ml_core.config import ConfigErrors, Hyperparameters
from models_app.models import SegmentationModel
from models_app.tasks import train_model


def check_hyperparameters(values: dict[str, Any]) -> Hyperparameters:
    """Raises MedSegError naming every hyperparameter that cannot be used."""
    try:
        return Hyperparameters.from_dict(values)
    except ConfigErrors as error:
        raise MedSegError("invalid_hyperparameters", str(error), attr="hyperparameters") from None


def create_model(*, user: Any, name: str, dataset: Dataset, hyperparameters: dict[str, Any]) -> SegmentationModel:
    """Queue a training. A second model of the same name becomes its next version."""
    name = clean_name(name)
    requested = check_hyperparameters(hyperparameters).to_dict()
    for _ in range(5):
        try:
            with transaction.atomic():
                # The lock keeps the dataset from being deleted between this look and the new row.
                locked = Dataset.objects.select_for_update().filter(pk=dataset.pk).first()
                if locked is None or locked.status != "ready":
                    state = "gone" if locked is None else locked.status
                    raise WrongStateError(
                        f"The dataset is {state}, not ready. Wait for its check, or mend what it found."
                    )
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
                enqueue_on_commit(train_model, model.pk)
            return model
        except IntegrityError:
            continue  # somebody took this version a moment ago: take the next
    raise MedSegError("busy", "Too many trainings of this name start at once. Try again.", attr="name")


def cancel_model(*, model: SegmentationModel) -> SegmentationModel:
    request_cancel(model)
    return model


def resume_model(*, model: SegmentationModel) -> SegmentationModel:
    """Go on with a failed or cancelled training from its last checkpoint (from the start where there is none)."""
    with transaction.atomic():
        if model.dataset is None:
            raise WrongStateError("Its dataset was deleted, so the training cannot go on.")
        requeue(model)
        enqueue_on_commit(train_model, model.pk)
    return model


def delete_model(*, model: SegmentationModel) -> None:
    """Remove the row and its objects; inferences stay. Raises WrongStateError while it is in use."""
    with transaction.atomic():
        locked = SegmentationModel.objects.select_for_update().get(pk=model.pk)
        if locked.is_active:
            raise WrongStateError("This model is being trained. Cancel the training first.")
        if locked.inferences.filter(status__in=["queued", "running"]).exists():
            raise WrongStateError("Images are being segmented with this model. Wait until they are done.")
        prefix = storage.object_key("models", locked.uuid)
        owner = locked.uuid
        locked.delete()
        transaction.on_commit(lambda: storage.delete_prefix(prefix))
        transaction.on_commit(lambda: storage.forget_local(owner))
