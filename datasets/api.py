"""The API at /api/v1/datasets/."""

from __future__ import annotations

import django_filters
from django.db.models import QuerySet
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, viewsets
from rest_framework.decorators import action
from rest_framework.filters import OrderingFilter, SearchFilter
from rest_framework.parsers import FormParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from accounts.request_keys import IdempotentPosts
from datasets import display, services
from datasets.downloads import dataset_zip
from datasets.models import Dataset, Sample
from datasets.serializers import (
    ClassSerializer,
    ClassUpdateSerializer,
    DatasetCreateSerializer,
    DatasetSerializer,
    SampleSerializer,
    VersionCreateSerializer,
)
from medseg_site.shared.web.api import JSONParser, answer_page, answer_started, wait_for_end, wait_seconds
from medseg_site.shared.web.downloads import object_response, part_response
from medseg_site.shared.web.job_api import JobLogMixin
from ml_core.io.formats import FORMATS, suffix_of

SLICE = OpenApiParameter("slice", int, description="The slice of a volume, from 0. Without it, the middle one.")
PNG = {(200, "image/png"): OpenApiTypes.BINARY}


class DatasetFilter(django_filters.FilterSet):
    status = django_filters.ChoiceFilter(choices=[(word, word) for word in Dataset.WORDS.all()])

    class Meta:
        model = Dataset
        fields = ["status"]


class DatasetViewSet(
    IdempotentPosts,
    JobLogMixin,
    mixins.ListModelMixin,
    mixins.RetrieveModelMixin,
    mixins.DestroyModelMixin,
    viewsets.GenericViewSet[Dataset],
):
    """A dataset is a ZIP of images and masks. A worker checks it, and it ends as `ready` or as `error`."""

    queryset = Dataset.objects.none()
    serializer_class = DatasetSerializer
    parser_classes = [MultiPartParser, JSONParser, FormParser]
    filterset_class = DatasetFilter
    search_fields = ["name", "description"]
    ordering_fields = ["id", "name", "uploaded_at", "status", "file_count", "total_size_mb"]
    lookup_value_regex = r"[0-9]{1,18}"

    def get_queryset(self) -> QuerySet[Dataset]:
        return Dataset.objects.visible_to(self.request.user).prefetch_related("classes")

    @extend_schema(request=DatasetCreateSerializer, responses={202: DatasetSerializer, 201: DatasetSerializer})
    def create(self, request: Request) -> Response:
        """Create a dataset from a ZIP (multipart, `archive`), a URL (`source_url`) or a complete upload (`upload`)."""
        serializer = DatasetCreateSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        values = serializer.validated_data
        if "archive" in values:
            dataset = services.create_dataset_from_upload(
                user=request.user,
                name=values["name"],
                description=values["description"],
                reading=values.get("reading"),
                archive=values["archive"],
            )
        elif "upload" in values:
            dataset = services.create_dataset_from_parts(
                user=request.user,
                name=values["name"],
                description=values["description"],
                reading=values.get("reading"),
                upload=values["upload"],
            )
        else:
            dataset = services.create_dataset_from_url(
                user=request.user,
                name=values["name"],
                description=values["description"],
                reading=values.get("reading"),
                source_url=values["source_url"],
            )
        wait_for_end(dataset, wait_seconds(request))
        return answer_started(
            request, dataset, self.get_serializer(dataset).data, reverse("dataset-detail", args=[dataset.pk])
        )

    @extend_schema(responses=DatasetSerializer(many=True))
    @action(detail=True, filterset_class=None, search_fields=None, ordering_fields=None)
    def versions(self, request: Request, pk: str) -> Response:
        """All versions of this dataset, the newest first."""
        rows = self.get_queryset()
        family = get_object_or_404(rows, pk=pk).family
        return answer_page(self.paginator, rows.filter(family=family).order_by("-version"), request, DatasetSerializer)

    @extend_schema(request=VersionCreateSerializer, responses={202: DatasetSerializer, 201: DatasetSerializer})
    @versions.mapping.post
    def create_version(self, request: Request, pk: str) -> Response:
        """Create a new version of this one from a ZIP of pairs, from names of samples to leave out, or from both.

        A pair replaces the sample of the same name, or is added. Both versions share the files that do not change. The
        samples keep their part of the split, and new samples are trained on.
        """
        base = get_object_or_404(self.get_queryset(), pk=pk)
        serializer = VersionCreateSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        dataset = services.create_version(user=request.user, base=base, **serializer.validated_data)
        wait_for_end(dataset, wait_seconds(request))
        return answer_started(
            request, dataset, self.get_serializer(dataset).data, reverse("dataset-detail", args=[dataset.pk])
        )

    @extend_schema(responses={(200, "application/zip"): OpenApiTypes.BINARY})
    @action(detail=True)
    def download(self, request: Request, pk: str) -> HttpResponseBase:
        """The archive as it was uploaded. For a later version: a ZIP of all its samples, in the layout of an upload."""
        return dataset_zip(request, self.get_object())

    @extend_schema(request=None, responses={202: DatasetSerializer})
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Stop the check, or the download before it. The dataset ends as `error` and can be checked again."""
        dataset = services.cancel_dataset(user=request.user, dataset=self.get_object())
        return Response(self.get_serializer(dataset).data, status=202)

    @extend_schema(request=None, responses={202: DatasetSerializer})
    @action(detail=True, methods=["post"])
    def recheck(self, request: Request, pk: str) -> Response:
        """Check a dataset that ended as `error` once more, for instance after a cancel or after a limit was raised."""
        dataset = services.recheck_dataset(user=request.user, dataset=self.get_object())
        return Response(self.get_serializer(dataset).data, status=202)

    def perform_destroy(self, instance: Dataset) -> None:
        services.delete_dataset(user=self.request.user, dataset=instance)

    @extend_schema(request=ClassUpdateSerializer, responses=ClassSerializer)
    @action(detail=True, methods=["patch"], url_path=r"classes/(?P<value>-?[0-9]{1,9})", url_name="class")
    def rename_class(self, request: Request, pk: str, value: str) -> Response:
        """Give a class another name or colour."""
        serializer = ClassUpdateSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        item = services.rename_class(
            user=request.user, dataset=self.get_object(), value=int(value), **serializer.validated_data
        )
        return Response(ClassSerializer(item).data)

    @extend_schema(responses=SampleSerializer(many=True))
    @action(
        detail=True,
        filterset_class=None,
        search_fields=["name"],
        ordering_fields=["id", "name", "position", "split"],
    )
    def samples(self, request: Request, pk: str) -> Response:
        """The images of a dataset with their masks, in the order of their names."""
        # get_object() would apply the search and the order of the samples to the datasets.
        dataset = get_object_or_404(self.get_queryset(), pk=pk)
        rows = Sample.objects.filter(dataset=dataset)
        if split := request.query_params.get("split"):
            # Postgres refuses texts that hold a null character.
            rows = rows.filter(split=split.replace("\0", ""))
        for backend in (SearchFilter, OrderingFilter):
            rows = backend().filter_queryset(request, rows, self)
        if not any(request.query_params.get(name) for name in ("split", "search", "ordering")):
            rows = dataset.all_samples()
        return answer_page(self.paginator, rows, request, SampleSerializer)

    def _sample(self, sample_id: str) -> Sample:
        return get_object_or_404(Sample, dataset=self.get_object(), pk=sample_id)

    @extend_schema(responses=PNG, parameters=[SLICE])
    @action(detail=True, url_path=r"samples/(?P<sample_id>[0-9]{1,18})/image", url_name="sample-image")
    def sample_image(self, request: Request, pk: str, sample_id: str) -> HttpResponse:
        """The image, or one slice of a volume, as an 8-bit PNG (grey or RGB) for the screen."""
        sample = self._sample(sample_id)
        return display.slice_response(
            lambda: display.display_array(sample.image_key, sample.image_sha256), request.query_params.get("slice")
        )

    @extend_schema(responses=PNG, parameters=[SLICE])
    @action(detail=True, url_path=r"samples/(?P<sample_id>[0-9]{1,18})/labels", url_name="sample-labels")
    def sample_labels(self, request: Request, pk: str, sample_id: str) -> HttpResponse:
        """The mask, or one slice of it, as an 8-bit PNG. A pixel is the position of its class in `classes`."""
        sample = self._sample(sample_id)
        values = [item.value for item in sample.dataset.classes.all()]
        oriented = display.shown_as_volume(sample.shape, sample.spacing)
        return display.slice_response(
            lambda: display.label_array(
                sample.mask_key, sample.mask_sha256, values, oriented=oriented, others=sample.dataset.others_are
            ),
            request.query_params.get("slice"),
        )

    @extend_schema(responses={(200, "application/octet-stream"): OpenApiTypes.BINARY})
    @action(detail=True, url_path=r"samples/(?P<sample_id>[0-9]{1,18})/mask", url_name="sample-mask")
    def sample_mask(self, request: Request, pk: str, sample_id: str) -> HttpResponseBase:
        """The mask in the dataset's label values, as a PNG, or as NIfTI for a volume."""
        sample = self._sample(sample_id)
        kind = FORMATS[suffix_of(sample.mask_key)]
        return object_response(
            request,
            sample.mask_key,
            content_type=kind.mime,
            name=f"{sample.name}_mask{kind.suffix}",
            sha256=sample.mask_sha256,
            download=kind.is_volume,
        )

    @extend_schema(responses={(200, "image/jpeg"): OpenApiTypes.BINARY})
    @action(detail=True, url_path=r"samples/(?P<sample_id>[0-9]{1,18})/thumbnail", url_name="sample-thumbnail")
    def sample_thumbnail(self, request: Request, pk: str, sample_id: str) -> HttpResponseBase:
        """A small picture of the image with its mask over it."""
        sample = self._sample(sample_id)
        if sample.thumbnail_offset is None or sample.thumbnail_size is None:
            return object_response(request, sample.thumbnail_key, content_type="image/jpeg", name="thumbnail.jpg")
        return part_response(
            sample.thumbnail_key,
            sample.thumbnail_offset,
            sample.thumbnail_size,
            content_type="image/jpeg",
            name="thumbnail.jpg",
        )
