"""The audit: who did what to which row. Services call `record` in the same transaction as the change itself."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal

from django.http import HttpRequest, HttpResponseBase

from accounts.models import AuditEvent

Act = Literal["upload", "train", "resume", "segment", "cancel", "delete"]
MAX_NAME = 300

_address: ContextVar[str] = ContextVar("address", default="")


class AddressMiddleware:
    """Keeps the address of the present request for `record`, because services do not get the request."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        before = _address.set(request.META.get("REMOTE_ADDR", "")[:45])
        try:
            return self.get_response(request)
        finally:
            _address.reset(before)


def record(user: Any, act: Act, row: Any) -> None:
    """Record that the user did this to the row, which has a KIND, a uuid and a project.

    Call it before a row is deleted. If the transaction fails, the change is undone and so is its record.
    """
    AuditEvent.objects.create(
        user=user,
        user_name=user.get_username() if user else "",
        action=act,
        object_kind=row.KIND,
        object_uuid=row.uuid,
        object_name=str(row)[:MAX_NAME],
        project_id=row.project_id,
        address=_address.get(),
    )
