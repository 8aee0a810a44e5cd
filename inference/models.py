"""What models said of new images."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.urls import reverse
from django.utils import timezone

from accounts.access import ProjectJobs
from medseg_site.shared.catalogue.declarations import Stored
from medseg_site.shared.jobs.row import Job, JobWords, job_constraints
from medseg_site.shared.web.paging import related_count
from models_app.models import SegmentationModel

WORDS = JobWords(queued="queued", working="running", done="completed", failed="failed", cancelled="cancelled")


# The task that writes the manifests of a cancelled batch's images.
NOTE_CANCELLED = "inference.tasks.note_cancelled"


class InferenceBatch(Job):
    """A ZIP of images, each of which becomes one inference. `working` lasts until the last of them has ended."""

    WORDS = WORDS
    KIND = "batch"
    TASK = "inference.tasks.expand_batch"
    STORED: ClassVar = Stored("batches", objects={"archive_key": None})

    model = models.ForeignKey(
        SegmentationModel, null=True, on_delete=models.SET_NULL, related_name="batches", editable=False
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False, db_index=True)
    archive_name = models.CharField(max_length=300, blank=True, editable=False)
    archive_key = models.CharField(max_length=300, blank=True, editable=False)
    issues = models.JSONField(default=list, blank=True, editable=False)
    # When workers were last called to its images: to segment them, or to note that they are cancelled.
    called_at = models.DateTimeField(null=True, blank=True, editable=False)
    # When a worker last took a turn at it.
    served_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects: ClassVar = ProjectJobs.as_manager()

    class Meta:
        db_table = "inference_batches"
        ordering = ["-created_at", "-id"]
        indexes = [models.Index(fields=["project", "created_at", "id"], name="batch_of_project_by_time")]
        verbose_name_plural = "inference batches"
        constraints = job_constraints("inference_batches", WORDS, Q(finished_at__isnull=False))

    def __str__(self) -> str:
        return f"Batch {self.pk}: {self.archive_name}"

    def get_absolute_url(self) -> str:
        return reverse("inference:batch", args=[self.pk])


class InferenceResult(Job):
    """One image, and the label map that one model gave it."""

    WORDS = WORDS
    KIND = "inference"
    TASK = "inference.tasks.run_inference"
    STORED: ClassVar = Stored(
        "inferences",
        objects={
            "input_image_s3_key": "input_sha256",
            "output_image_s3_key": "output_sha256",
            "certainty_key": "certainty_sha256",
            "reference_key": None,
        },
    )

    model = models.ForeignKey(
        SegmentationModel, null=True, on_delete=models.SET_NULL, related_name="inferences", editable=False
    )
    batch = models.ForeignKey(
        InferenceBatch,
        null=True,
        blank=True,
        on_delete=models.CASCADE,
        related_name="inferences",
        editable=False,
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False, db_index=True)
    image_name = models.CharField(max_length=300, editable=False)
    input_image_s3_key = models.CharField(max_length=300, blank=True, editable=False)
    input_sha256 = models.CharField(max_length=64, blank=True, editable=False)
    output_image_s3_key = models.CharField(max_length=300, blank=True, editable=False)
    output_sha256 = models.CharField(max_length=64, blank=True, editable=False)
    reference_key = models.CharField(max_length=300, blank=True, editable=False)
    reference_name = models.CharField(max_length=300, blank=True, editable=False)
    shape = models.JSONField(default=list, blank=True, editable=False)
    spacing = models.JSONField(null=True, blank=True, editable=False)
    seconds = models.FloatField(null=True, blank=True, editable=False)
    classes = models.JSONField(default=list, blank=True, editable=False)
    metrics = models.JSONField(null=True, blank=True, editable=False)
    confidence = models.FloatField(
        null=True, blank=True, editable=False
    )  # 0 to 1: the certainty's mean over what was found
    certainty_key = models.CharField(max_length=300, blank=True, editable=False)  # a map beside the labels, 255 is sure
    certainty_sha256 = models.CharField(max_length=64, blank=True, editable=False)
    warnings = models.JSONField(default=list, blank=True, editable=False)
    # Cancelled together with its batch; its timeline and its manifest do not say so yet.
    note_due = models.BooleanField(default=False, editable=False)

    objects: ClassVar = ProjectJobs.as_manager()

    class Meta:
        db_table = "inference_results"
        ordering = ["-created_at", "-id"]
        # With the id at their end, so that Postgres too finds the rows of a page without reading any, and the project, so
        # that those of a user are found in them too.
        indexes = [
            models.Index(fields=["created_at", "id", "project"], name="inference_by_time"),
            models.Index(fields=["project", "created_at", "id"], name="inference_of_project_by_time"),
            models.Index(fields=["batch", "status"], name="inference_of_batch_by_status"),
            models.Index(fields=["batch", "created_at", "id", "project"], name="inference_of_batch_by_time"),
            models.Index(fields=["batch", "confidence", "id"], name="inference_of_batch_by_sureness"),
            models.Index(fields=["status", "created_at", "id", "project"], name="inference_of_status_by_time"),
            models.Index(fields=["confidence", "id", "project"], name="inference_by_confidence"),
            models.Index(fields=["seconds", "id", "project"], name="inference_by_seconds"),
            models.Index(fields=["image_name", "id", "project"], name="inference_by_image_name"),
        ]
        constraints = [
            *job_constraints("inference_results", WORDS, ~Q(output_image_s3_key="") & ~Q(output_sha256="")),
            models.CheckConstraint(
                condition=Q(certainty_key="", certainty_sha256="", confidence__isnull=True)
                | ~Q(certainty_key="") & ~Q(certainty_sha256="") & Q(confidence__gte=0, confidence__lte=1),
                name="inference_results_certainty_is_whole",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.image_name} by {self.model or 'a deleted model'}"

    def get_absolute_url(self) -> str:
        return reverse("inference:detail", args=[self.pk])


def with_counts(batches: models.QuerySet[InferenceBatch]) -> models.QuerySet[InferenceBatch]:
    """Batches with `total`, `completed` and `failed` (which counts the cancelled too)."""
    counted: models.QuerySet[InferenceBatch] = batches.annotate(
        total=related_count(InferenceResult, "batch"),
        completed=related_count(InferenceResult, "batch", status="completed"),
        failed=related_count(InferenceResult, "batch", status="failed")
        + related_count(InferenceResult, "batch", status="cancelled"),
    )
    return counted
