"""The tables of datasets, their samples and their classes. The files are in storage; these rows say which ones."""

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
from ml_core.dataset.fingerprint import Fingerprint
from ml_core.dataset.reading import Decision, Reading, settled

WORDS = JobWords(queued="uploaded", working="uploaded", done="ready", failed="error", cancelled=None)


class Dataset(Job):
    """One version of a dataset: a ZIP of images and masks, and what the check found in it.

    A ready version never changes, except for its name, its description and the names and colours of its classes. A
    later version of the same `family` is a row of its own. Where a sample did not change, both versions name the same
    objects.
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
    # The uuid of the first version. All versions of a dataset share it.
    family = models.UUIDField(default=uuid.uuid4, editable=False)
    version = models.PositiveIntegerField(default=1, editable=False)
    # The number of the version that this one was made from. That version may be deleted by now.
    based_on = models.PositiveIntegerField(null=True, blank=True, editable=False)
    # The names of those samples of `based_on` that are not in this version.
    leave_out = models.JSONField(default=list, blank=True, editable=False)
    # How many samples differ from `based_on`: {kept, added, replaced, left_out}.
    changes = models.JSONField(default=dict, blank=True, editable=False)
    s3_bucket = models.CharField(max_length=200, blank=True, editable=False)
    s3_key = models.CharField(max_length=300, blank=True, editable=False)
    uploaded_at = models.DateTimeField(default=timezone.now, editable=False, db_index=True)
    file_count = models.PositiveIntegerField(default=0, editable=False)
    total_size_mb = models.FloatField(default=0, editable=False)
    # The SHA-256 of the archive as it was uploaded.
    checksum = models.CharField(max_length=64, blank=True, editable=False)
    archive_name = models.CharField(max_length=300, blank=True, editable=False)
    source_url = models.TextField(blank=True, editable=False)
    is_synthetic = models.BooleanField(default=False, editable=False)
    modality = models.CharField(max_length=32, blank=True, editable=False)
    dimensions = models.PositiveSmallIntegerField(null=True, blank=True, editable=False)
    channels = models.PositiveSmallIntegerField(null=True, blank=True, editable=False)
    fingerprint = models.JSONField(default=dict, blank=True, editable=False)
    # How masks are read (ml_core.dataset.reading): what a user has asked for, and after the check what holds.
    reading = models.JSONField(default=dict, blank=True, editable=False)
    kind = models.CharField(max_length=16, default="semantic", editable=False)
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
        """The samples in order, for a paginator.

        A ready dataset knows their number and numbers them without a gap, so no page has to count or skip them.
        """
        samples = self.samples.order_by("position")
        last = samples.values_list("position", flat=True).last()
        if self.status == WORDS.done and last == self.file_count - 1:
            return counted(samples, self.file_count, numbered_by="position")
        return samples

    @property
    def base(self) -> Dataset | None:
        """The version that this one is based on. None for a first version, and when that version was deleted."""
        if self.based_on is None:
            return None
        return Dataset.objects.filter(family=self.family, version=self.based_on).first()

    @property
    def is_cancelled(self) -> bool:
        return self.cancelled_at is not None

    @property
    def others_are(self) -> int:
        """The position, among the classes, of mask values that are no class value: of ignored pixels, or of objects."""
        return 1 if self.kind == "instances" else 0

    def class_dicts(self) -> list[LabelClass]:
        return [{"value": item.value, "name": item.name, "color": item.color} for item in self.classes.all()]


def decision_of(dataset: Dataset) -> Decision:
    """How the masks of a ready dataset were read."""
    fingerprint = Fingerprint.from_json(dataset.fingerprint)
    [background, *_] = dataset.class_dicts()
    reading = Reading.from_json(dataset.reading)
    return settled(reading, background["value"], fingerprint.ignored, fingerprint.mask_codes)


class DatasetClass(models.Model):
    """One value of the masks, with its name and its colour (#rrggbb). The background comes first."""

    dataset = models.ForeignKey(Dataset, on_delete=models.CASCADE, related_name="classes")
    value = models.IntegerField(editable=False)
    name = models.CharField(max_length=100)
    color = models.CharField(max_length=7)
    is_background = models.BooleanField(default=False, editable=False)

    class Meta:
        db_table = "classes"
        ordering = ["-is_background", "value"]
        verbose_name = "class"
        verbose_name_plural = "classes"
        constraints = [models.UniqueConstraint(fields=["dataset", "value"], name="one_class_per_value")]

    def __str__(self) -> str:
        return f"{self.name} ({self.value})"


class Sample(models.Model):
    """One image with its mask. The mask is stored in the dataset's label values on the grid of the image."""

    STORED: ClassVar = Stored(
        objects={"image_key": "image_sha256", "mask_key": "mask_sha256", "thumbnail_key": None}, apart=True
    )

    dataset = models.ForeignKey(Dataset, on_delete=models.CASCADE, related_name="samples")
    position = models.PositiveIntegerField(editable=False)
    name = models.CharField(max_length=300)
    # A salted hash of the DICOM PatientID, or a key from the name. A group stays in one part of the split.
    patient_group = models.CharField(max_length=64, blank=True, editable=False)
    split = models.CharField(max_length=8, choices=[("train", "train"), ("val", "val"), ("test", "test")], blank=True)
    shape = models.JSONField(default=list, editable=False)
    spacing = models.JSONField(null=True, editable=False)
    image_key = models.CharField(max_length=300, editable=False)
    image_sha256 = models.CharField(max_length=64, editable=False)
    mask_key = models.CharField(max_length=300, editable=False)
    mask_sha256 = models.CharField(max_length=64, editable=False)
    thumbnail_key = models.CharField(max_length=300, editable=False)
    # Where the thumbnail is in that object, in bytes. None when the object holds only this one thumbnail.
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
