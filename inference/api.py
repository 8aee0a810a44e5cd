"""/api/v1/inferences/ and /api/v1/inference-batches/"""

from __future__ import annotations

import django_filters
import numpy as np
from django.db.models import QuerySet
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from numpy.typing import NDArray
from rest_framework import mixins, viewsets
from rest_framework.decorators import action
from rest_framework.parsers import MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from accounts.access import visible_rows
from accounts.request_keys import IdempotentPosts
from datasets import display
from inference import services
from inference.downloads import batch_zip
from inference.models import InferenceBatch, InferenceResult, with_counts
from inference.serializers import (
    BatchCreateSerializer,
    BatchSerializer,
    InferenceCreateSerializer,
    InferenceSerializer,
)
from medseg_site.shared.base.errors import MedSegError, WrongStateError, refuse_if
from medseg_site.shared.web.api import JSONParser, answer_started, wait_for_end, wait_seconds
from medseg_site.shared.web.downloads import object_response
from medseg_site.shared.web.job_api import JobLogMixin
from ml_core.io.formats import FORMATS, stem, suffix_of
from models_app.models import SegmentationModel

SLICE = OpenApiParameter("slice", int, description="Slice of a volume, from 0; the middle one when left out.")
OPACITY = OpenApiParameter("opacity", float, description="Of the classes' colours, 0 to 1; 0.5 when left out.")
PREFER = OpenApiParameter(
    "Prefer",
    str,
    OpenApiParameter.HEADER,
    description="`wait=N`: answer when the work ends, after N seconds (at most 60) at the latest.",
)
PNG = {(200, "image/png"): OpenApiTypes.BINARY}


class InferenceFilter(django_filters.FilterSet):
    status = django_filters.ChoiceFilter(choices=[(word, word) for word in InferenceResult.WORDS.all()])
    model = django_filters.ModelChoiceFilter(queryset=visible_rows(SegmentationModel))
    batch = django_filters.ModelChoiceFilter(queryset=visible_rows(InferenceBatch))

    class Meta:
        model = InferenceResult
        fields = ["status", "model", "batch"]


class InferenceViewSet(
    IdempotentPosts,
    JobLogMixin,
    mixins.ListModelMixin,
    mixins.RetrieveModelMixin,
    mixins.DestroyModelMixin,
    viewsets.GenericViewSet[InferenceResult],
):
    """Inferences: `queued` → `running` → `completed` | `failed` | `cancelled`."""

    queryset = InferenceResult.objects.none()
    serializer_class = InferenceSerializer
    parser_classes = [MultiPartParser]
    filterset_class = InferenceFilter
    search_fields = ["image_name"]
    ordering_fields = ["id", "created_at", "status", "seconds", "confidence", "image_name"]
    lookup_value_regex = r"[0-9]{1,18}"

    def get_queryset(self) -> QuerySet[InferenceResult]:
        return InferenceResult.objects.visible_to(self.request.user)

    @extend_schema(
        request=InferenceCreateSerializer,
        responses={202: InferenceSerializer, 201: InferenceSerializer},
        parameters=[PREFER],
    )
    def create(self, request: Request) -> Response:
        """Segment one image, and score the result where a reference `mask` is given."""
        wanted = InferenceCreateSerializer(data=request.data, context={"request": request})
        wanted.is_valid(raise_exception=True)
        row = services.create_inference(user=request.user, **wanted.validated_data)
        wait_for_end(row, wait_seconds(request))
        return answer_started(request, row, self.get_serializer(row).data, reverse("inference-detail", args=[row.pk]))

    def perform_destroy(self, instance: InferenceResult) -> None:
        services.delete_inference(user=self.request.user, inference=instance)

    @extend_schema(request=None, responses={202: InferenceSerializer})
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        row = services.cancel_inference(user=request.user, inference=self.get_object())
        return Response(self.get_serializer(row).data, status=202)

    def _finished(self) -> InferenceResult:
        row: InferenceResult = self.get_object()
        if not row.output_image_s3_key:
            raise WrongStateError(
                f"This inference is {row.status} and has no label map. {row.error or 'Ask again when it is completed.'}"
            )
        return row

    @extend_schema(responses={(200, "image/png"): OpenApiTypes.BINARY, (200, "application/gzip"): OpenApiTypes.BINARY})
    @action(detail=True)
    def mask(self, request: Request, pk: str) -> HttpResponseBase:
        """The label map on the image's own grid in the dataset's label values: PNG, or NIfTI for volumes."""
        row = self._finished()
        return _map_response(request, row, row.output_image_s3_key, row.output_sha256, "labels")

    @extend_schema(
        responses={(200, "image/png"): OpenApiTypes.BINARY, (200, "application/gzip"): OpenApiTypes.BINARY},
        parameters=[OpenApiParameter("slice", int, description="This slice only, as a PNG laid as on the screen.")],
    )
    @action(detail=True)
    def certainty(self, request: Request, pk: str) -> HttpResponseBase:
        """How sure the model is, 0 (a toss-up of all classes) to 255 (sure), on the image's own grid: PNG, or NIfTI for volumes."""
        row = self._finished()
        if not row.certainty_key:
            raise WrongStateError("This inference is older than maps of certainty. Segment the image again.")
        if (index := request.query_params.get("slice")) is None:
            return _map_response(request, row, row.certainty_key, row.certainty_sha256, "certainty")
        return display.slice_response(lambda: _certainty(row), index)

    @extend_schema(responses=PNG, parameters=[SLICE])
    @action(detail=True)
    def image(self, request: Request, pk: str) -> HttpResponse:
        """The input as an 8-bit picture (grey or RGB) for the screen (one slice of a volume)."""
        row: InferenceResult = self.get_object()
        return display.slice_response(lambda: _image(row), request.query_params.get("slice"))

    @extend_schema(responses=PNG, parameters=[SLICE])
    @action(detail=True)
    def labels(self, request: Request, pk: str) -> HttpResponse:
        """The label map as an 8-bit picture: a pixel is the position of its class in `classes`."""
        row = self._finished()
        return display.slice_response(lambda: _labels(row), request.query_params.get("slice"))

    @extend_schema(responses=PNG, parameters=[SLICE, OPACITY])
    @action(detail=True)
    def overlay(self, request: Request, pk: str) -> HttpResponse:
        """The input with the classes' colours over it."""
        row = self._finished()
        opacity = _opacity(request.query_params.get("opacity"))
        colors = [item["color"] for item in row.classes]
        index = request.query_params.get("slice")
        return display.overlay_response(lambda: _image(row), lambda: _labels(row), colors, opacity, index)


def _image(row: InferenceResult) -> NDArray[np.uint8]:
    return display.display_array(row.input_image_s3_key, row.input_sha256)


def _labels(row: InferenceResult) -> NDArray[np.uint8]:
    values = [item["value"] for item in row.classes]
    oriented = display.shown_as_volume(row.shape, row.spacing)
    return display.label_array(row.output_image_s3_key, row.output_sha256, values, oriented=oriented)


def _certainty(row: InferenceResult) -> NDArray[np.uint8]:
    """uint8 (D, H, W), laid as the image is on the screen: as a label map whose values are 0 to 255."""
    oriented = display.shown_as_volume(row.shape, row.spacing)
    return display.label_array(row.certainty_key, row.certainty_sha256, list(range(256)), oriented=oriented)


def _map_response(request: Request, row: InferenceResult, key: str, sha256: str, what: str) -> HttpResponseBase:
    """A stored map as it is. Its name is that of the image, with the folders of a batch."""
    kind = FORMATS[suffix_of(key)]
    folder, _, base = row.image_name.rpartition("/")
    name = "_".join([*filter(None, folder.split("/")), stem(base), f"{what}{kind.suffix}"])
    return object_response(request, key, content_type=kind.mime, name=name, sha256=sha256, download=kind.is_volume)


def _opacity(text: str | None) -> float:
    try:
        opacity = float(text or 0.5)
    except ValueError:
        opacity = -1.0
    if not 0 <= opacity <= 1:
        raise MedSegError("invalid_opacity", "The opacity is a number from 0 to 1.", attr="opacity")
    return opacity


class BatchFilter(django_filters.FilterSet):
    status = django_filters.ChoiceFilter(choices=[(word, word) for word in InferenceBatch.WORDS.all()])
    model = django_filters.ModelChoiceFilter(queryset=visible_rows(SegmentationModel))

    class Meta:
        model = InferenceBatch
        fields = ["status", "model"]


class InferenceBatchViewSet(
    IdempotentPosts,
    JobLogMixin,
    mixins.ListModelMixin,
    mixins.RetrieveModelMixin,
    mixins.DestroyModelMixin,
    viewsets.GenericViewSet[InferenceBatch],
):
    """Batches: a ZIP of images, one inference per image."""

    queryset = InferenceBatch.objects.none()
    serializer_class = BatchSerializer
    parser_classes = [MultiPartParser, JSONParser]
    filterset_class = BatchFilter
    search_fields = ["archive_name"]
    ordering_fields = ["id", "created_at", "status"]
    lookup_value_regex = r"[0-9]{1,18}"

    def get_queryset(self) -> QuerySet[InferenceBatch]:
        return with_counts(InferenceBatch.objects.visible_to(self.request.user))

    @extend_schema(
        request=BatchCreateSerializer,
        responses={202: BatchSerializer, 201: BatchSerializer},
        parameters=[PREFER],
    )
    def create(self, request: Request) -> Response:
        """Segment every image of a ZIP.

        For a model of volumes the DICOM files of one series in one folder are one image, and so is a ZIP of one series.
        `image_name` of each inference is the path in the ZIP.
        """
        wanted = BatchCreateSerializer(data=request.data, context={"request": request})
        wanted.is_valid(raise_exception=True)
        make = services.create_batch_from_parts if "upload" in wanted.validated_data else services.create_batch
        batch = make(user=request.user, **wanted.validated_data)
        wait_for_end(batch, wait_seconds(request))
        data = self.get_serializer(self.get_queryset().get(pk=batch.pk)).data
        return answer_started(request, batch, data, reverse("inference-batch-detail", args=[batch.pk]))

    def perform_destroy(self, instance: InferenceBatch) -> None:
        services.delete_batch(user=self.request.user, batch=instance)

    @extend_schema(request=None, responses={202: BatchSerializer})
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Stop a batch. The masks that are made by then stay."""
        services.cancel_batch(user=request.user, batch=self.get_object())
        return Response(self.get_serializer(self.get_object()).data, status=202)

    @extend_schema(responses={(200, "application/zip"): OpenApiTypes.BINARY})
    @action(detail=True)
    def download(self, request: Request, pk: str) -> HttpResponseBase:
        """A ZIP of all label maps, in the folders of the ZIP that was sent, with summary.json."""
        batch = self.get_object()
        refuse_if(services.why_not_downloadable(batch))
        return batch_zip(batch)
