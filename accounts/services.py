"""What can be asked of accounts."""

from __future__ import annotations

from typing import Any

from accounts.models import Project


def personal_project(user: Any) -> Project:
    """The user's own project, made at first need. Two requests at once get the same one."""
    project, _ = Project.objects.get_or_create(personal_of=user, defaults={"name": user.get_username()})
    return project
