"""The rules of access: who may see a row that has a `project`, and who may do what with it.

The tables of the apps above have `objects = ProjectJobs.as_manager()`. Every page and every API query starts with
`Table.objects.visible_to(user)`, and every service that changes a row calls `require`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self, TypeVar

from django.conf import settings
from django.db.models import Model, QuerySet

from accounts.models import Membership, Project, Role
from medseg_site.shared.base.errors import MedSegError
from medseg_site.shared.jobs.row import JobQuerySet

Action = Literal["view", "annotate", "change", "delete", "manage"]
Rows = TypeVar("Rows", bound=QuerySet[Any])

# `change` covers all work on rows: upload, train, segment, cancel, rename. `manage` covers the project and its members.
ALLOWED: dict[str, frozenset[Action]] = {
    Role.VIEWER: frozenset({"view"}),
    Role.ANNOTATOR: frozenset({"view", "annotate"}),
    Role.MEMBER: frozenset({"view", "annotate", "change", "delete"}),
    Role.OWNER: frozenset({"view", "annotate", "change", "delete", "manage"}),
}


def has_all_rights(user: Any) -> bool:
    """Whether the user may do everything. That is so for superusers, and for everybody in single-user mode."""
    return settings.MEDSEG_SINGLE_USER or (user is not None and user.is_superuser)


def projects_of(user: Any) -> list[int]:
    """The ids of the user's projects: the personal one, and those with a membership. It takes one query."""
    if user is None or user.pk is None:
        return []
    personal = Project.objects.filter(personal_of=user.pk).order_by().values_list("pk", flat=True)
    shared = Membership.objects.filter(user=user.pk).order_by().values_list("project", flat=True)
    return list(personal.union(shared))


def visible_to(rows: Rows, user: Any) -> Rows:
    """The rows that this user may see.

    The ids of the projects are fetched first. With ids in place of a subquery, the database reads the rows of a list in
    the order of the index (project, time) and stops after one page.
    """
    if has_all_rights(user):
        return rows.all()
    return rows.filter(project__in=projects_of(user))


def visible_rows(table: type[Model]) -> Callable[[Any], QuerySet[Any]]:
    """For a filter of the API: the rows of the table that a request's user may see, and none without a request.

    A filter that looked at all rows would answer 400 for numbers that do not exist and 200 for those of other projects.
    """

    def of_request(request: Any) -> QuerySet[Any]:
        rows = table._default_manager.all()
        return visible_to(rows, request.user) if request else rows.none()

    return of_request


def role_of(user: Any, project: int) -> str | None:
    """The user's role in the project with the id `project`. None when the user is not in it."""
    if user is None or user.pk is None:
        return None
    if Project.objects.filter(pk=project, personal_of=user.pk).exists():
        return Role.OWNER
    return Membership.objects.filter(project=project, user=user.pk).values_list("role", flat=True).first()


def may(user: Any, action: Action, row: Any) -> bool:
    """Whether the user may do this to the row. The row has a `project`, or is a Project itself."""
    if has_all_rights(user):
        return True
    project = row.pk if isinstance(row, Project) else row.project_id
    role = role_of(user, project)
    return role is not None and action in ALLOWED[role]


def require(user: Any, action: Action, row: Any) -> None:
    """Raise MedSegError (403) when the user may not do this to the row."""
    if not may(user, action, row):
        cure = "Ask an owner of the project for another role."
        text = f"Your role in the project of {row} does not allow that ({action}). {cure}"
        raise MedSegError("permission_denied", text, http_status=403)


class ProjectRows(QuerySet[Any]):
    """The rows of a table that has a `project`."""

    def visible_to(self, user: Any) -> Self:
        return visible_to(self, user)


class ProjectJobs(JobQuerySet):
    """The rows of a table of jobs, without their logs: a log may hold half a megabyte, and only one page shows it."""

    def visible_to(self, user: Any) -> Self:
        return visible_to(self, user).defer("log")
