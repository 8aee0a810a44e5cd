"""What the HTML pages share: pages of a list, refusals as messages, and the end of a live part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.core.paginator import Page
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django_htmx.http import reselect, reswap, retarget, trigger_client_event

from medseg_site.shared.base.errors import MedSegError
from medseg_site.shared.jobs.row import Job
from medseg_site.shared.web.paging import KeyPaginator


def page_of(request: HttpRequest, rows: QuerySet[Any] | list[Any], size: int) -> Page[Any]:
    """The page of a list that `?page=` names, or the nearest one."""
    return KeyPaginator(rows, size).get_page(request.GET.get("page"))


def tell(request: HttpRequest, done: str, service: Callable[[], object]) -> bool:
    """Call a service and put its success or its refusal on the next page as a message. True when it succeeded."""
    try:
        service()
    except MedSegError as error:
        messages.error(request, error.detail)
        return False
    messages.success(request, done)
    return True


def is_live(request: HttpRequest) -> bool:
    """Whether the request comes from a live part of a page."""
    return bool(getattr(request, "htmx", False))


def end_live_part(response: HttpResponse, text: str, kind: str) -> HttpResponseBase:
    """Replace the page around a live part by `response`, now that the job has ended, and show a toast."""
    response = reswap(reselect(retarget(response, "#content"), "#content"), "outerHTML")
    return trigger_client_event(response, "medseg:toast", {"text": text, "kind": kind})


def end_text(row: Job) -> tuple[str, str]:
    """Text and kind of the toast for a job that has ended."""
    kinds = {row.WORDS.done: "success", row.WORDS.failed: "danger"}
    return f"{row}: {row.status}.", kinds.get(row.status, "warning")


def to_page(row: Any) -> HttpResponse:
    """Redirect to the page of a row, with 303, so that a reload does not repeat the change."""
    response = redirect(row)
    response.status_code = 303
    return response
