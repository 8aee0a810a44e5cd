"""/api/v1/datasets/"""

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

SLICE = OpenApiParameter("slice", int, description="Slice of a volume, from 0; the middle one when left out.")
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
    """Datasets: a ZIP of images and masks, checked by a worker until it is `ready` or in `error`."""

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
        """Upload a ZIP (multipart, `archive`), import one from a URL (`source_url`), or take one that came in parts (`upload`)."""
        wanted = DatasetCreateSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        given = wanted.validated_data
        if "archive" in given:
            dataset = services.create_dataset_from_upload(
                user=request.user,
                name=given["name"],
                description=given["description"],
                archive=given["archive"],
            )
        elif "upload" in given:
            dataset = services.create_dataset_from_parts(
                user=request.user,
                name=given["name"],
                description=given["description"],
                upload=given["upload"],
            )
        else:
            dataset = services.create_dataset_from_url(
                user=request.user,
                name=given["name"],
                description=given["description"],
                source_url=given["source_url"],
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
        """A new version based on this one: a ZIP with pairs that are new or take the place of those of their names, and
        samples to leave out. What does not change is shared, and the split stays: new samples are trained on."""
        base = get_object_or_404(self.get_queryset(), pk=pk)
        wanted = VersionCreateSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        dataset = services.create_version(user=request.user, base=base, **wanted.validated_data)
        wait_for_end(dataset, wait_seconds(request))
        return answer_started(
            request, dataset, self.get_serializer(dataset).data, reverse("dataset-detail", args=[dataset.pk])
        )

    @extend_schema(responses={(200, "application/zip"): OpenApiTypes.BINARY})
    @action(detail=True)
    def download(self, request: Request, pk: str) -> HttpResponseBase:
        """The archive as it came; of a later version, all of its samples as a ZIP in the layout that an upload has."""
        return dataset_zip(request, self.get_object())

    @extend_schema(request=None, responses={202: DatasetSerializer})
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Stop the check, or the download before it: the dataset ends as `error`. The archive stays and can be checked again."""
        dataset = services.cancel_dataset(user=request.user, dataset=self.get_object())
        return Response(self.get_serializer(dataset).data, status=202)

    @extend_schema(request=None, responses={202: DatasetSerializer})
    @action(detail=True, methods=["post"])
    def recheck(self, request: Request, pk: str) -> Response:
        """Check a dataset that ended as `error` once more, for instance after a cancel or when a limit was raised."""
        dataset = services.recheck_dataset(user=request.user, dataset=self.get_object())
        return Response(self.get_serializer(dataset).data, status=202)

    def perform_destroy(self, instance: Dataset) -> None:
        services.delete_dataset(user=self.request.user, dataset=instance)

    @extend_schema(request=ClassUpdateSerializer, responses=ClassSerializer)
    @action(detail=True, methods=["patch"], url_path=r"classes/(?P<value>-?[0-9]{1,9})", url_name="class")
    def rename_class(self, request: Request, pk: str, value: str) -> Response:
        """Give a class another name or colour."""
        wanted = ClassUpdateSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        item = services.rename_class(
            user=request.user, dataset=self.get_object(), value=int(value), **wanted.validated_data
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
        # Not get_object(): it would search and order the datasets by what is asked of the samples.
        dataset = get_object_or_404(self.get_queryset(), pk=pk)
        found = Sample.objects.filter(dataset=dataset)
        if split := request.query_params.get("split"):
            found = found.filter(split=split.replace("\0", ""))  # Postgres refuses to compare with it
        for backend in (SearchFilter, OrderingFilter):
            found = backend().filter_queryset(request, found, self)
        if not any(request.query_params.get(name) for name in ("split", "search", "ordering")):
            found = dataset.all_samples()
        return answer_page(self.paginator, found, request, SampleSerializer)

    def _sample(self, sample_id: str) -> Sample:
        return get_object_or_404(Sample, dataset=self.get_object(), pk=sample_id)

    @extend_schema(responses=PNG, parameters=[SLICE])
    @action(detail=True, url_path=r"samples/(?P<sample_id>[0-9]{1,18})/image", url_name="sample-image")
    def sample_image(self, request: Request, pk: str, sample_id: str) -> HttpResponse:
        """The image as an 8-bit picture (grey or RGB) for the screen (one slice of a volume)."""
        sample = self._sample(sample_id)
        return display.slice_response(
            lambda: display.display_array(sample.image_key, sample.image_sha256), request.query_params.get("slice")
        )

    @extend_schema(responses=PNG, parameters=[SLICE])
    @action(detail=True, url_path=r"samples/(?P<sample_id>[0-9]{1,18})/labels", url_name="sample-labels")
    def sample_labels(self, request: Request, pk: str, sample_id: str) -> HttpResponse:
        """The mask as an 8-bit picture: a pixel is the position of its class in the dataset's `classes`."""
        sample = self._sample(sample_id)
        values = [item.value for item in sample.dataset.classes.all()]
        oriented = display.shown_as_volume(sample.shape, sample.spacing)
        return display.slice_response(
            lambda: display.label_array(sample.mask_key, sample.mask_sha256, values, oriented=oriented),
            request.query_params.get("slice"),
        )

    @extend_schema(responses={(200, "application/octet-stream"): OpenApiTypes.BINARY})
    @action(detail=True, url_path=r"samples/(?P<sample_id>[0-9]{1,18})/mask", url_name="sample-mask")
    def sample_mask(self, request: Request, pk: str, sample_id: str) -> HttpResponseBase:
        """The mask in the dataset's label values: PNG, or NIfTI for a volume."""
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
