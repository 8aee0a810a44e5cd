"""The tables of uploads and their parts: large files on their way into the platform."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from accounts.access import ProjectRows
from accounts.models import Project
from medseg_site.shared.catalogue.declarations import Stored
from medseg_site.shared.storage import objects as storage

COLLECTIONS = {"dataset": "datasets", "batch": "batches"}


class Upload(models.Model):
    """One file that arrives in parts. A dataset or batch that is made from it takes over its uuid.

    `open` (parts arrive) → `complete` (the file is whole) → `used` (a dataset or batch has the file).
    An `aborted` upload is being removed. `size` and `part_size` are in bytes.
    """

    OPEN, COMPLETE, USED, ABORTED = "open", "complete", "used", "aborted"
    STATES = (OPEN, COMPLETE, USED, ABORTED)

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    project = models.ForeignKey(
        Project, editable=False, db_index=False, on_delete=models.PROTECT, related_name="upload_rows"
    )
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, editable=False, on_delete=models.SET_NULL, related_name="+"
    )
    STORED: ClassVar = Stored(reserves="uploads")
    KIND: ClassVar = "upload"

    purpose = models.CharField(
        max_length=16, choices=[("dataset", "dataset archive"), ("batch", "batch archive")], editable=False
    )
    file_name = models.CharField(max_length=300, editable=False)
    size = models.BigIntegerField(editable=False)
    part_size = models.BigIntegerField(editable=False)
    # The checksum of the whole file, if the sender announced one.
    sha256 = models.CharField(max_length=64, blank=True, editable=False)
    s3_bucket = models.CharField(max_length=200, blank=True, editable=False)
    # The UploadId of S3. It is empty for the local folder.
    backend_id = models.CharField(max_length=1000, blank=True, editable=False)
    state = models.CharField(
        max_length=16, default=OPEN, choices=[(state, state) for state in STATES], editable=False, db_index=True
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(default=timezone.now, editable=False, db_index=True)

    objects = ProjectRows.as_manager()

    class Meta:
        db_table = "uploads"
        ordering = ["-created_at", "-id"]
        indexes = [models.Index(fields=["project", "created_at", "id"], name="upload_of_project_by_time")]
        constraints = [
            models.CheckConstraint(
                condition=Q(state__in=["open", "complete", "used", "aborted"]), name="uploads_known_state"
            ),
            models.CheckConstraint(condition=Q(size__gt=0) & Q(part_size__gt=0), name="uploads_have_sizes"),
        ]

    def __str__(self) -> str:
        return f"{self.file_name} ({self.state})"

    @property
    def key(self) -> str:
        """The key of the file in storage once a dataset or batch has it."""
        return storage.object_key(COLLECTIONS[self.purpose], self.uuid, "archive.zip")

    @property
    def part_count(self) -> int:
        return -(-self.size // self.part_size)

    def bytes_of(self, number: int) -> int:
        """The size in bytes that part `number` (from 1) must have. Only the last part may be smaller."""
        return min(self.part_size, self.size - (number - 1) * self.part_size)


class UploadPart(models.Model):
    """One part: the checksum that the sender announced, and, for the local folder, whether the part has arrived."""

    upload = models.ForeignKey(Upload, on_delete=models.CASCADE, related_name="parts")
    number = models.PositiveIntegerField()
    sha256 = models.CharField(max_length=64)
    # The bytes reach the disk before this becomes True.
    is_stored = models.BooleanField(default=False)

    class Meta:
        db_table = "upload_parts"
        ordering = ["number"]
        constraints = [models.UniqueConstraint(fields=["upload", "number"], name="one_upload_part_per_number")]

    def __str__(self) -> str:
        return f"part {self.number}"
