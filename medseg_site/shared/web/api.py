"""What every API view shares: errors, rows named by their id, pages of a list, and `Prefer: wait`."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from typing import IO, Any

from django.core.exceptions import ObjectDoesNotExist, RequestDataTooBig, SuspiciousOperation
from django.db.models import Model, QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from drf_standardized_errors.handler import ExceptionHandler as StandardizedExceptionHandler
from rest_framework import status
from rest_framework.exceptions import APIException, ErrorDetail, NotFound, ParseError, ValidationError
from rest_framework.pagination import PageNumberPagination
from rest_framework.parsers import JSONParser as PlainJSONParser
from rest_framework.relations import PrimaryKeyRelatedField
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer

from medseg_site.shared.base import events, outages
from medseg_site.shared.base.errors import MedSegError
from medseg_site.shared.jobs.row import Job
from medseg_site.shared.web.gate import gate
from medseg_site.shared.web.paging import KeyPaginator

MAX_WAIT_SECONDS = 60
log = logging.getLogger(__name__)


class Pagination(PageNumberPagination):
    django_paginator_class = KeyPaginator
    page_size = 50
    max_page_size = 500
    page_size_query_param = "page_size"


class JSONParser(PlainJSONParser):
    """The library's parser, which lets the RecursionError of 100,000 brackets through."""

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        try:
            return super().parse(stream, media_type, parser_context)
        except RecursionError:
            raise ParseError("The JSON has too many brackets in brackets. Send a plain object.") from None


class ExceptionHandler(StandardizedExceptionHandler):
    """Gives a domain error its status and code. The library handles everything else."""

    def convert_known_exceptions(self, exc: Exception) -> Exception:
        if isinstance(exc, MedSegError):
            if exc.http_status == status.HTTP_400_BAD_REQUEST:
                detail = [ErrorDetail(exc.detail, code=exc.code)]
                return ValidationError({exc.attr or "non_field_errors": detail})
            return _api_error(exc.detail, exc.code, exc.http_status)
        if isinstance(exc, RequestDataTooBig):
            text = "A text in the request is larger than 5 MB. Send files as files (multipart), and shorter texts."
            return _api_error(text, "too_large", status.HTTP_413_REQUEST_ENTITY_TOO_LARGE)
        # A form with more fields or files than any of ours has.
        if isinstance(exc, SuspiciousOperation):
            return ParseError(f"{exc} Send only the fields that this address takes.")
        if isinstance(exc, ObjectDoesNotExist):
            return NotFound("It was deleted in the meantime.")
        if reason := outages.reason_of(exc):
            log.warning("%s: %s", reason, exc)
            return _api_error(f"{reason} Try again in a moment.", "unavailable", status.HTTP_503_SERVICE_UNAVAILABLE)
        return super().convert_known_exceptions(exc)


def _api_error(detail: str, code: str, http_status: int) -> APIException:
    answer = APIException(detail, code=code)
    answer.status_code = http_status
    return answer


@extend_schema_field(OpenApiTypes.INT)
class VisibleRowField(PrimaryKeyRelatedField[Any]):
    """The id of a row of `table` that the user may see."""

    def __init__(self, table: type[Model], **options: Any) -> None:
        self.table: Any = table
        super().__init__(**options)

    def get_queryset(self) -> QuerySet[Any]:
        rows: QuerySet[Any] = self.table.objects.visible_to(self.context["request"].user)
        return rows

    def to_internal_value(self, data: Any) -> Any:
        try:
            return super().to_internal_value(data)
        except OverflowError:  # the number 1e400
            self.fail("incorrect_type", data_type=type(data).__name__)


def answer_page(paginator: Any, rows: Any, request: Request, serializer: type[BaseSerializer[Any]]) -> Response:
    """One page of a list inside another resource, such as a dataset's samples or a model's epochs."""
    page = paginator.paginate_queryset(rows, request)
    answer: Response = paginator.get_paginated_response(serializer(page, many=True, context={"request": request}).data)
    return answer


def wait_seconds(request: Request) -> float:
    """Seconds of the header `Prefer: wait=N`; 0 without it, MAX_WAIT_SECONDS at most."""
    found = re.search(r"\bwait\s*=\s*([0-9]{1,6})", request.headers.get("Prefer", ""))
    return float(min(int(found[1]), MAX_WAIT_SECONDS)) if found else 0.0


def wait_for_end(row: Job, seconds: float) -> None:
    """Return when the job has ended or `seconds` have passed. The row's columns are fresh then."""
    deadline = time.monotonic() + seconds
    row.refresh_from_db()
    while row.is_active and (left := deadline - time.monotonic()) > 0:
        with gate.left_meanwhile():
            events.wait_a_moment(row.KIND, row.pk, min(left, 1.0))
        row.refresh_from_db()


def answer_started(request: Request, row: Job, data: Any, url: str) -> Response:
    """202 for work that goes on, 201 for work that ended while the client waited."""
    code = status.HTTP_202_ACCEPTED if row.is_active else status.HTTP_201_CREATED
    headers = {"Location": request.build_absolute_uri(url)}
    if seconds := wait_seconds(request):
        headers["Preference-Applied"] = f"wait={int(seconds)}"
    return Response(data, status=code, headers=headers)
