"""The tables of trainings with their models, and of the epochs of each training."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.urls import reverse
from django.utils import timezone

from accounts.access import ProjectJobs
from datasets.models import Dataset
from medseg_site.shared.catalogue.declarations import Stored
from medseg_site.shared.jobs.row import Job, JobWords, job_constraints
from ml_core.dataset.splits import StoredSplit

WORDS = JobWords(queued="queued", working="training", done="completed", failed="failed", cancelled="cancelled")


# The task that packages the best weights of a cancelled training.
KEEP_WEIGHTS = "models_app.tasks.keep_weights"


class SegmentationModel(Job):
    """One training and its result. A second training with the same name in a project is the next version."""

    WORDS = WORDS
    KIND = "model"
    TASK = "models_app.tasks.train_model"
    STORED: ClassVar = Stored(
        "models",
        objects={"s3_key": "checksum"},
        parts=("epochs",),
        folders=("cases",),
        folders_until_done=("checkpoints",),
    )

    name = models.CharField(max_length=200)
    version = models.PositiveIntegerField(default=1, editable=False)
    dataset = models.ForeignKey(Dataset, null=True, on_delete=models.SET_NULL, related_name="models", editable=False)
    s3_bucket = models.CharField(max_length=200, blank=True, editable=False)
    s3_key = models.CharField(max_length=300, blank=True, editable=False)
    checksum = models.CharField(max_length=64, blank=True, editable=False)
    # The hyperparameters that the user asked for.
    requested = models.JSONField(default=dict, blank=True, editable=False)
    # Those that the training uses. Until there is a plan, they are those that were asked for.
    hyperparameters = models.JSONField(default=dict, blank=True, editable=False)
    plan = models.JSONField(default=dict, blank=True, editable=False)
    split = models.JSONField(default=dict, blank=True, editable=False)
    # The time and memory that a few steps took before the start.
    estimate = models.JSONField(default=dict, blank=True, editable=False)
    metrics = models.JSONField(default=dict, blank=True, editable=False)
    # What was chosen for predictions, because it helped on the validation cases.
    decisions = models.JSONField(default=dict, blank=True, editable=False)
    classes = models.JSONField(default=list, blank=True, editable=False)
    warnings = models.JSONField(default=list, blank=True, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False, db_index=True)
    trained_at = models.DateTimeField(null=True, blank=True, editable=False)
    # True while the checkpoints hold weights that are in no package yet.
    weights_due = models.BooleanField(default=False, editable=False)

    objects: ClassVar = ProjectJobs.as_manager()

    class Meta:
        db_table = "models"
        ordering = ["-created_at", "-id"]
        indexes = [models.Index(fields=["project", "created_at", "id"], name="model_of_project_by_time")]
        verbose_name = "model"
        constraints = [
            *job_constraints("models", WORDS, ~Q(s3_key="") & ~Q(checksum="") & Q(trained_at__isnull=False)),
            models.UniqueConstraint(fields=["project", "name", "version"], name="one_model_per_version"),
        ]

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"

    def get_absolute_url(self) -> str:
        return reverse("models_app:detail", args=[self.pk])

    @property
    def is_usable(self) -> bool:
        """Whether the model has weights. It is completed then, or was cancelled after its first validated epoch."""
        return bool(self.s3_key)

    @property
    def are_weights_due(self) -> bool:
        """Whether a worker still has to package the best weights of this cancelled training (see late_weights.py)."""
        return self.status == WORDS.cancelled and self.weights_due and self.dataset_id is not None

    @property
    def split_numbers(self) -> dict[str, int | str] | None:
        """The number of samples in each part of the split, and the grouping. None before there is a plan."""
        if not self.split:
            return None
        split = StoredSplit.from_json(self.split)
        return {**{part: len(names) for part, names in split.parts().items()}, "grouping": split.grouping}


def cancelled_with_weights_due() -> models.QuerySet[SegmentationModel]:
    """Models for which `are_weights_due` is true."""
    return SegmentationModel.objects.filter(status=WORDS.cancelled, weights_due=True, dataset__isnull=False)


class Epoch(models.Model):
    """One point of a training's curve. `seconds` is how long the epoch took.

    The `val_` numbers are measured on the validation images as the network sees them.
    """

    model = models.ForeignKey(SegmentationModel, on_delete=models.CASCADE, related_name="epochs")
    epoch = models.PositiveIntegerField()
    train_loss = models.FloatField(null=True)
    val_loss = models.FloatField(null=True)
    val_dice = models.FloatField(null=True)
    val_iou = models.FloatField(null=True)
    learning_rate = models.FloatField()
    seconds = models.FloatField()
    images_per_second = models.FloatField()

    class Meta:
        db_table = "epochs"
        ordering = ["epoch"]
        constraints = [models.UniqueConstraint(fields=["model", "epoch"], name="one_row_per_epoch")]

    def __str__(self) -> str:
        return f"epoch {self.epoch}"
