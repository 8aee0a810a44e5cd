"""Projects and who is in them, what people did, and the answers that a repeated request gets again."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from medseg_site.shared.catalogue.declarations import Stored


class Project(models.Model):
    """Whose rows are: every dataset, model, inference, batch and upload belongs to one project.

    A personal project is its user's own, without a membership. It stays, with its rows, when the user is deleted.
    """

    # It has no object in storage. The manifest of each of its rows says all of it.
    STORED: ClassVar = Stored(told_in_full=True)

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    name = models.CharField(max_length=200)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    # Null: the project is shared.
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
    """What a member of a project is. accounts/access.py says what each may do."""

    VIEWER = "viewer"
    ANNOTATOR = "annotator"
    MEMBER = "member"
    OWNER = "owner"


class Membership(models.Model):
    """A user in a project."""

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
    """Who did what to which row. It is written once and never changed (accounts/append_only.py).

    User and project may be deleted later; the names of the user and of the object stay.
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
    # Where the request came from. Empty: nobody's request, such as a command.
    address = models.CharField(max_length=45, blank=True, editable=False)

    class Meta:
        db_table = "audit_events"
        ordering = ["-at", "-id"]
        indexes = [models.Index(fields=["project", "at", "id"], name="audit_event_of_project")]

    def __str__(self) -> str:
        return f"{self.user_name or 'nobody'}: {self.action} {self.object_kind} {self.object_name}"


class RequestKey(models.Model):
    """The `Idempotency-Key` of one request, and what that was answered (accounts/request_keys.py)."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="request_keys")
    key = models.CharField(max_length=200)
    request = models.TextField()  # such as "POST /api/v1/models/"
    sha256 = models.CharField(max_length=64)  # of what was sent
    # Null: the first request is still being answered.
    status_code = models.PositiveSmallIntegerField(null=True)
    answer = models.TextField(blank=True)  # JSON as it was sent
    location = models.TextField(blank=True)  # the answer's header
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        db_table = "request_keys"
        constraints = [models.UniqueConstraint(fields=["user", "key"], name="one_request_per_key")]

    def __str__(self) -> str:
        return self.key
