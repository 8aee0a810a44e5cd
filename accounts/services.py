"""Everything that the other apps ask of accounts."""

from __future__ import annotations

from typing import Any

from accounts.models import Project


def personal_project(user: Any) -> Project:
    """The personal project of a user. It is made on first use; two requests at once get the same project."""
    project, _ = Project.objects.get_or_create(personal_of=user, defaults={"name": user.get_username()})
    return project
