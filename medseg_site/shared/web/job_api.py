"""The log of a job in the API."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request


class JobLogMixin:
    """For a view set of jobs."""

    @extend_schema(responses={(200, "text/plain"): OpenApiTypes.STR})
    @action(detail=True, filterset_class=None, search_fields=[], ordering_fields=[])
    def log(self: Any, request: Request, pk: str) -> HttpResponse:
        """The last 1,000 lines that the workers of this job logged, as a text file. It is empty until a worker takes the job."""
        row = self.get_object()
        headers = {"Content-Disposition": f'attachment; filename="{row.KIND}-{row.pk}.log"'}
        return HttpResponse(
            f"{row.log}\n" if row.log else "", content_type="text/plain; charset=utf-8", headers=headers
        )
