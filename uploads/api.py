"""The API at /api/v1/uploads/. It takes large files in parts and follows the form of S3's multipart uploads."""

from __future__ import annotations

import django_filters
from django.db.models import QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, status, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from accounts.request_keys import IdempotentPosts
from medseg_site.shared.web.api import JSONParser
from uploads import services
from uploads.models import Upload
from uploads.serializers import (
    CompleteSerializer,
    PartsSerializer,
    SignedPartsSerializer,
    SignSerializer,
    StoredPartSerializer,
    UploadCreateSerializer,
    UploadSerializer,
)


class UploadFilter(django_filters.FilterSet):
    state = django_filters.ChoiceFilter(choices=[(state, state) for state in Upload.STATES])

    class Meta:
        model = Upload
        fields = ["state", "purpose"]


class UploadViewSet(
    IdempotentPosts,
    mixins.ListModelMixin,
    mixins.RetrieveModelMixin,
    mixins.DestroyModelMixin,
    viewsets.GenericViewSet[Upload],
):
    """An upload is `open` → `complete` → `used`. A complete one can become a dataset or a batch (field `upload`)."""

    queryset = Upload.objects.none()
    serializer_class = UploadSerializer
    parser_classes = [JSONParser]
    filterset_class = UploadFilter
    search_fields = ["file_name"]
    ordering_fields = ["created_at", "updated_at", "size", "state"]
    lookup_field = "uuid"
    lookup_value_regex = "[0-9a-fA-F-]{36}"

    def get_queryset(self) -> QuerySet[Upload]:
        return Upload.objects.visible_to(self.request.user)

    @extend_schema(request=UploadCreateSerializer, responses={201: UploadSerializer})
    def create(self, request: Request) -> Response:
        """Begin an upload. The answer says into how many parts, and of which size, the file has to be cut."""
        serializer = UploadCreateSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        upload = services.create_upload(user=request.user, **serializer.validated_data)
        url = reverse("upload-detail", args=[str(upload.uuid)], request=request)
        data = self.get_serializer(upload).data
        return Response(data, status=status.HTTP_201_CREATED, headers={"Location": url})

    @extend_schema(request=SignSerializer, responses=SignedPartsSerializer)
    @action(detail=True, methods=["post"], filterset_class=None)
    def sign(self, request: Request, uuid: str) -> Response:
        """The addresses to PUT parts to: signed addresses of S3, or addresses of the platform itself."""
        serializer = SignSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        values = serializer.validated_data
        urls = services.sign_parts(
            upload=self.get_object(), numbers=values["part_numbers"], checksums=values["checksums"]
        )
        return Response({"parts": [{"PartNumber": number, "url": url} for number, url in urls.items()]})

    @extend_schema(responses=PartsSerializer)
    @action(detail=True, filterset_class=None, pagination_class=None)
    def parts(self, request: Request, uuid: str) -> Response:
        """The parts that have arrived."""
        return Response({"parts": services.list_parts(upload=self.get_object())})

    @extend_schema(
        request={"application/octet-stream": OpenApiTypes.BINARY}, responses=StoredPartSerializer, filters=False
    )
    @action(detail=True, methods=["put"], url_path=r"parts/(?P<number>[0-9]{1,5})", filterset_class=None)
    def part(self, request: Request, uuid: str, number: str) -> Response:
        """Store one part. Only for a platform that keeps its files in a local folder; with S3, parts go to S3."""
        length = request.headers.get("Content-Length", "")
        tag = services.put_part(upload=self.get_object(), number=int(number), source=request._request, length=length)
        return Response({"PartNumber": int(number), "ETag": f'"{tag}"'}, headers={"ETag": f'"{tag}"'})

    @extend_schema(request=CompleteSerializer, responses=UploadSerializer)
    @action(detail=True, methods=["post"], filterset_class=None)
    def complete(self, request: Request, uuid: str) -> Response:
        """Join the parts into one file. A repeated request gets the same answer."""
        serializer = CompleteSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        parts = serializer.validated_data.get("parts")
        tags = None if parts is None else {part["PartNumber"]: part["ETag"] for part in parts}
        upload = services.complete_upload(upload=self.get_object(), tags=tags)
        return Response(self.get_serializer(upload).data)

    def perform_destroy(self, instance: Upload) -> None:
        """Stop an upload. The parts that have arrived are removed."""
        services.abort_upload(user=self.request.user, upload=instance)
