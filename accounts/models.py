"""The tables of projects, memberships, audit events, and the answers that a repeated request gets again."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from medseg_site.shared.catalogue.declarations import Stored


class Project(models.Model):
    """The owner of rows: every dataset, model, inference, batch and upload belongs to one project.

    A personal project belongs to one user and has no memberships. When the user is deleted, it stays, with its rows.
    """

    # A project has no object in storage. The manifest of each of its rows holds all its columns.
    STORED: ClassVar = Stored(told_in_full=True)

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    name = models.CharField(max_length=200)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    # Null for a shared project.
    personal_of = models.OneToOneField(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        editable=False,
        on_delete=models.SET_NULL,
        related_name="personal_project",
    )

    class Meta:
        db_table = "projects"
        ordering = ["name", "id"]

    def __str__(self) -> str:
        return self.name


class Role(models.TextChoices):
    """The roles of a member in a project. accounts/access.py says what each of them may do."""

    VIEWER = "viewer"
    ANNOTATOR = "annotator"
    MEMBER = "member"
    OWNER = "owner"


class Membership(models.Model):
    """A user is a member of a project, with a role."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=16, choices=Role.choices)

    class Meta:
        db_table = "memberships"
        ordering = ["project", "user"]
        constraints = [
            models.UniqueConstraint(fields=["project", "user"], name="one_membership_per_user"),
            models.CheckConstraint(condition=Q(role__in=Role.values), name="memberships_known_role"),
        ]

    def __str__(self) -> str:
        return f"{self.user} ({self.role})"


class AuditEvent(models.Model):
    """An entry of the audit: who did what to which row. It is never changed (see accounts/append_only.py).

    The user and the project may be deleted later. The names of the user and of the object stay in the entry.
    """

    at = models.DateTimeField(default=timezone.now, editable=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, editable=False, on_delete=models.SET_NULL, related_name="audit_events"
    )
    user_name = models.CharField(max_length=150, blank=True, editable=False)
    action = models.CharField(max_length=32, editable=False)
    object_kind = models.CharField(max_length=32, editable=False)
    object_uuid = models.UUIDField(editable=False)
    object_name = models.CharField(max_length=300, editable=False)
    project = models.ForeignKey(
        Project,
        null=True,
        editable=False,
        db_index=False,
        on_delete=models.SET_NULL,
        related_name="audit_events",
    )
    # The IP address that the request came from. It is empty without a request, such as for a command.
    address = models.CharField(max_length=45, blank=True, editable=False)

    class Meta:
        db_table = "audit_events"
        ordering = ["-at", "-id"]
        indexes = [models.Index(fields=["project", "at", "id"], name="audit_event_of_project")]

    def __str__(self) -> str:
        return f"{self.user_name or 'nobody'}: {self.action} {self.object_kind} {self.object_name}"


class RequestKey(models.Model):
    """The `Idempotency-Key` of one request, and the answer that the request got (see accounts/request_keys.py)."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="request_keys")
    key = models.CharField(max_length=200)
    # The method and the path, such as "POST /api/v1/models/".
    request = models.TextField()
    # The checksum of what was sent. The same key with another checksum is refused.
    sha256 = models.CharField(max_length=64)
    # Null while the first request is still being answered.
    status_code = models.PositiveSmallIntegerField(null=True)
    # The JSON text of the answer.
    answer = models.TextField(blank=True)
    # The Location header of the answer.
    location = models.TextField(blank=True)
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        db_table = "request_keys"
        constraints = [models.UniqueConstraint(fields=["user", "key"], name="one_request_per_key")]

    def __str__(self) -> str:
        return self.key
