"""The API at /api/v1/models/ and /api/v1/architectures/."""

from __future__ import annotations

import django_filters
from django.db.models import QuerySet
from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import mixins, serializers, viewsets
from rest_framework.decorators import action
from rest_framework.generics import ListAPIView
from rest_framework.parsers import FormParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from accounts.access import visible_rows
from accounts.request_keys import IdempotentPosts
from datasets.models import Dataset
from medseg_site.shared.base.errors import refuse_if
from medseg_site.shared.storage import objects as storage
from medseg_site.shared.web.api import JSONParser, answer_page, answer_started, wait_for_end, wait_seconds
from medseg_site.shared.web.downloads import object_response
from medseg_site.shared.web.job_api import JobLogMixin
from ml_core.networks.catalogue import ARCHITECTURES
from ml_core.planning.hyperparameters import json_schema
from models_app import services
from models_app.models import Epoch, SegmentationModel
from models_app.serializers import (
    ArchitectureSerializer,
    EpochSerializer,
    ModelCreateSerializer,
    ModelSerializer,
    PlanAskSerializer,
    PlanSerializer,
    ResumeSerializer,
    refusal,
)


class ModelFilter(django_filters.FilterSet):
    status = django_filters.ChoiceFilter(choices=[(word, word) for word in SegmentationModel.WORDS.all()])
    dataset = django_filters.ModelChoiceFilter(queryset=visible_rows(Dataset))

    class Meta:
        model = SegmentationModel
        fields = ["status", "dataset"]


class ModelViewSet(
    IdempotentPosts,
    JobLogMixin,
    mixins.ListModelMixin,
    mixins.RetrieveModelMixin,
    mixins.DestroyModelMixin,
    viewsets.GenericViewSet[SegmentationModel],
):
    """A model and its training: `queued` → `training` → `completed` | `failed` | `cancelled`."""

    queryset = SegmentationModel.objects.none()
    serializer_class = ModelSerializer
    parser_classes = [JSONParser, FormParser, MultiPartParser]
    filterset_class = ModelFilter
    search_fields = ["name"]
    ordering_fields = ["id", "name", "version", "status", "created_at", "trained_at"]
    lookup_value_regex = r"[0-9]{1,18}"

    def get_queryset(self) -> QuerySet[SegmentationModel]:
        rows = SegmentationModel.objects.visible_to(self.request.user).select_related("dataset")
        return rows.defer(*(f"dataset__{name}" for name in ("fingerprint", "issues", "timeline", "log", "leave_out")))

    @extend_schema(request=ModelCreateSerializer, responses={202: ModelSerializer, 201: ModelSerializer})
    def create(self, request: Request) -> Response:
        """Train a model. Every hyperparameter that is left out is planned from the data."""
        serializer = ModelCreateSerializer(data=request.data, context={"request": request})
        serializer.is_valid(raise_exception=True)
        try:
            model = services.create_model(user=request.user, **serializer.validated_data)
        except services.HyperparametersError as error:
            raise refusal(error) from None
        wait_for_end(model, wait_seconds(request))
        return answer_started(request, model, self.get_serializer(model).data, reverse("model-detail", args=[model.pk]))

    @extend_schema(request=PlanAskSerializer, responses=PlanSerializer)
    @action(detail=False, methods=["post"])
    def plan(self, request: Request) -> Response:
        """Say what a training would use, and why, without starting it. It is refused for the same reasons."""
        serializer = PlanAskSerializer(data=request.data, context={"request": request})
        serializer.is_valid(raise_exception=True)
        try:
            plan = services.preview_plan(user=request.user, **serializer.validated_data)
        except services.HyperparametersError as error:
            raise refusal(error) from None
        return Response({"hyperparameters": plan.hyperparameters(), "reasons": plan.reasons})

    def perform_destroy(self, instance: SegmentationModel) -> None:
        services.delete_model(user=self.request.user, model=instance)

    @extend_schema(responses=EpochSerializer(many=True))
    @action(detail=True, filterset_class=None, search_fields=[], ordering_fields=[])
    def epochs(self, request: Request, pk: str) -> Response:
        """The curve of the training, with one entry per epoch."""
        return answer_page(self.paginator, Epoch.objects.filter(model=self.get_object()), request, EpochSerializer)

    @extend_schema(request=None, responses={202: ModelSerializer})
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Stop the training. Its best weights so far are kept."""
        model = services.cancel_model(user=request.user, model=self.get_object())
        return Response(self.get_serializer(model).data, status=202)

    @extend_schema(request=ResumeSerializer, responses={202: ModelSerializer})
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Resume a failed or cancelled training from its last checkpoint. It may be given more epochs than before."""
        serializer = ResumeSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        try:
            model = services.resume_model(user=request.user, model=self.get_object(), changes=serializer.validated_data)
        except services.HyperparametersError as error:
            raise serializers.ValidationError({name: [text] for name, text in error.fields.items()}) from None
        return Response(self.get_serializer(model).data, status=202)

    @extend_schema(
        responses={
            (200, "application/zip"): OpenApiTypes.BINARY,
            302: OpenApiResponse(
                description="A signed address, good for an hour. Only where objects are in S3 and clients can reach it."
            ),
        }
    )
    @action(detail=True)
    def download(self, request: Request, pk: str) -> HttpResponseBase:
        """The model package: weights (safetensors), plan, classes, metrics and card in one ZIP."""
        model = self.get_object()
        refuse_if(services.why_not_usable(model))
        name = f"{model.name}-v{model.version}.zip"
        return object_response(
            request, model.s3_key, content_type="application/zip", name=name, sha256=model.checksum, download=True
        )

    @extend_schema(responses={(200, "image/png"): OpenApiTypes.BINARY})
    @action(detail=True, url_path=r"cases/(?P<sample_id>[0-9]{1,18})/overlay", url_name="case-overlay")
    def case_overlay(self, request: Request, pk: str, sample_id: str) -> HttpResponseBase:
        """A picture of one held-out case. Green was found, red was missed, and blue is too much."""
        key = storage.object_key("models", self.get_object().uuid, "cases", f"{int(sample_id)}.png")
        return object_response(request, key, content_type="image/png", name=f"case-{sample_id}.png")


class ArchitectureListView(ListAPIView[SegmentationModel]):
    """All architectures that can be trained."""

    serializer_class = ArchitectureSerializer
    filter_backends = ()
    # The permissions in the schema need a queryset. No row of it is read.
    queryset = SegmentationModel.objects.none()

    def list(self, request: Request, *args: object, **kwargs: object) -> Response:
        rows = [
            {
                "name": item.name,
                "label": item.label,
                "summary": item.summary,
                "dimensions": item.dimensions,
                "encoders": item.encoders,
                "parameters": json_schema(item.encoders),
            }
            for item in ARCHITECTURES.values()
        ]
        return answer_page(self.paginator, rows, request, ArchitectureSerializer)
