"""Answers requests that nothing else answered: 404, 503 with the reason for an outage, and 500 for any other error."""

from __future__ import annotations

import logging
import sys

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string
from django.views.defaults import page_not_found, server_error

from medseg_site.shared.base import outages

log = logging.getLogger(__name__)
SECONDS_TO_TRY_AGAIN = 15


def failure(request: HttpRequest) -> HttpResponse:
    """Django's handler500. It asks no database, since the database may be the outage."""
    error = sys.exc_info()[1]
    reason = outages.reason_of(error) if error else None
    if reason is None:
        return server_error(request)
    log.warning("%s %s: %s (%s)", request.method, request.path, reason, error)
    return outage(request.path, reason)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler404: JSON for an address below /api/ that does not exist, and the page otherwise."""
    if request.path.startswith("/api/"):
        detail = {"code": "not_found", "detail": "There is nothing at this address.", "attr": None}
        return JsonResponse({"type": "client_error", "errors": [detail]}, status=404)
    return page_not_found(request, exception)


def outage(path: str, reason: str) -> HttpResponse:
    """503 with the reason, as JSON for the API and as a page otherwise."""
    headers = {"Retry-After": str(SECONDS_TO_TRY_AGAIN)}
    if path.startswith("/api/"):
        detail = {"code": "unavailable", "detail": f"{reason} Try again in a moment.", "attr": None}
        return JsonResponse({"type": "server_error", "errors": [detail]}, status=503, headers=headers)
    return HttpResponse(render_to_string("503.html", {"reason": reason}), status=503, headers=headers)
