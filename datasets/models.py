"""The catalogue: datasets, their samples and their classes. Files live in storage; these rows say what is there."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models
from django.db.models import Q, QuerySet
from django.urls import reverse
from django.utils import timezone

from accounts.access import ProjectJobs
from medseg_site.shared.catalogue.declarations import Stored
from medseg_site.shared.jobs.row import Job, JobWords, job_constraints
from medseg_site.shared.web.paging import counted
from ml_core.dataset.classes import LabelClass

WORDS = JobWords(queued="uploaded", working="uploaded", done="ready", failed="error", cancelled=None)


class Dataset(Job):
    """A ZIP of images and masks, and what the check found in it: one version, which never changes once it is ready.

    A later version of the same `family` is a row of its own; its samples name the objects of the version that it is
    based on, where those did not change.
    """

    WORDS = WORDS
    KIND = "dataset"
    TASK = "datasets.tasks.check_dataset"
    CANCELLED = "The check was cancelled. “Check again” on the dataset's page starts it anew."
    STORED: ClassVar = Stored(
        "datasets", objects={"s3_key": "checksum"}, parts=("classes", "samples"), taken_from={"family": "uuid"}
    )

    name = models.CharField(max_length=200)
    description = models.TextField(blank=True)
    family = models.UUIDField(default=uuid.uuid4, editable=False)  # that of the first version's uuid
    version = models.PositiveIntegerField(default=1, editable=False)
    based_on = models.PositiveIntegerField(
        null=True, blank=True, editable=False
    )  # another version; it may be deleted by now
    leave_out = models.JSONField(
        default=list, blank=True, editable=False
    )  # names of its samples that are not wanted any more
    changes = models.JSONField(default=dict, blank=True, editable=False)  # {kept, added, replaced, left_out}: numbers
    s3_bucket = models.CharField(max_length=200, blank=True, editable=False)
    s3_key = models.CharField(max_length=300, blank=True, editable=False)
    uploaded_at = models.DateTimeField(default=timezone.now, editable=False, db_index=True)
    file_count = models.PositiveIntegerField(default=0, editable=False)
    total_size_mb = models.FloatField(default=0, editable=False)
    checksum = models.CharField(max_length=64, blank=True, editable=False)  # SHA-256 of the archive as it came
    archive_name = models.CharField(max_length=300, blank=True, editable=False)
    source_url = models.TextField(blank=True, editable=False)
    is_synthetic = models.BooleanField(default=False, editable=False)
    modality = models.CharField(max_length=32, blank=True, editable=False)
    dimensions = models.PositiveSmallIntegerField(null=True, blank=True, editable=False)
    channels = models.PositiveSmallIntegerField(null=True, blank=True, editable=False)
    fingerprint = models.JSONField(default=dict, blank=True, editable=False)
    issues = models.JSONField(default=list, blank=True, editable=False)
    issue_count = models.PositiveIntegerField(default=0, editable=False)

    objects: ClassVar = ProjectJobs.as_manager()

    class Meta:
        db_table = "datasets"
        ordering = ["-uploaded_at", "-id"]
        indexes = [models.Index(fields=["project", "uploaded_at", "id"], name="dataset_of_project_by_time")]
        constraints = [
            *job_constraints(
                "datasets",
                WORDS,
                Q(dimensions__isnull=False) & Q(file_count__gte=2) & (~Q(s3_key="") | Q(based_on__isnull=False)),
            ),
            models.UniqueConstraint(fields=["family", "version"], name="one_dataset_per_version"),
        ]

    def __str__(self) -> str:
        return self.name if self.version == 1 else f"{self.name} v{self.version}"

    def get_absolute_url(self) -> str:
        return reverse("datasets:detail", args=[self.pk])

    def all_samples(self) -> QuerySet[Sample]:
        """In order, for a paginator: a dataset that is ready is neither counted nor walked through for each page."""
        samples = self.samples.order_by("position")
        last = samples.values_list("position", flat=True).last()
        if self.status == WORDS.done and last == self.file_count - 1:
            return counted(samples, self.file_count, numbered_by="position")
        return samples

    @property
    def base(self) -> Dataset | None:
        """The version that this one is based on; None for a first one, and where that was deleted."""
        if self.based_on is None:
            return None
        return Dataset.objects.filter(family=self.family, version=self.based_on).first()

    @property
    def is_cancelled(self) -> bool:
        return self.cancelled_at is not None

    def class_dicts(self) -> list[LabelClass]:
        return [{"value": item.value, "name": item.name, "color": item.color} for item in self.classes.all()]


class DatasetClass(models.Model):
    """One value of the masks. The lowest (or 0) is background."""

    dataset = models.ForeignKey(Dataset, on_delete=models.CASCADE, related_name="classes")
    value = models.IntegerField(editable=False)
    name = models.CharField(max_length=100)
    color = models.CharField(max_length=7)

    class Meta:
        db_table = "classes"
        ordering = ["value"]
        verbose_name = "class"
        verbose_name_plural = "classes"
        constraints = [models.UniqueConstraint(fields=["dataset", "value"], name="one_class_per_value")]

    def __str__(self) -> str:
        return f"{self.name} ({self.value})"


class Sample(models.Model):
    """One image with its mask. The mask is stored in the dataset's label values on the image's own grid."""

    STORED: ClassVar = Stored(
        objects={"image_key": "image_sha256", "mask_key": "mask_sha256", "thumbnail_key": None}, apart=True
    )

    dataset = models.ForeignKey(Dataset, on_delete=models.CASCADE, related_name="samples")
    position = models.PositiveIntegerField(editable=False)
    name = models.CharField(max_length=300)
    patient_group = models.CharField(max_length=64, blank=True, editable=False)  # a salted hash, or a key from the name
    split = models.CharField(max_length=8, choices=[("train", "train"), ("val", "val"), ("test", "test")], blank=True)
    shape = models.JSONField(default=list, editable=False)
    spacing = models.JSONField(null=True, editable=False)
    image_key = models.CharField(max_length=300, editable=False)
    image_sha256 = models.CharField(max_length=64, editable=False)
    mask_key = models.CharField(max_length=300, editable=False)
    mask_sha256 = models.CharField(max_length=64, editable=False)
    thumbnail_key = models.CharField(max_length=300, editable=False)
    # Where in that object it lies, in bytes; None where the object is this one thumbnail, as it was in earlier versions.
    thumbnail_offset = models.PositiveIntegerField(null=True, editable=False)
    thumbnail_size = models.PositiveIntegerField(null=True, editable=False)

    class Meta:
        db_table = "samples"
        ordering = ["position"]
        indexes = [
            models.Index(fields=["dataset", "split", "position", "id"], name="sample_of_split"),
            models.Index(fields=["dataset", "name", "id"], name="sample_by_name"),
        ]
        constraints = [models.UniqueConstraint(fields=["dataset", "position"], name="one_sample_per_position")]

    def __str__(self) -> str:
        return self.name
