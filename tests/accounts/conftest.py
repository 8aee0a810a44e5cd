"""People of a platform that has several."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User

from accounts.models import Membership, Project, Role


@pytest.fixture
def several_users(db: None, settings: Any) -> None:
    settings.MEDSEG_SINGLE_USER = False


@pytest.fixture
def anna(several_users: None) -> User:
    return User.objects.create_user("anna")


@pytest.fixture
def bert(several_users: None) -> User:
    return User.objects.create_user("bert")


def shared_project(**roles: User) -> Project:
    """A project with one member of each role that is named."""
    project = Project.objects.create(name="shared")
    for role, user in roles.items():
        Membership.objects.create(project=project, user=user, role=Role(role))
    return project
