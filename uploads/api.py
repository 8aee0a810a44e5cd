"""/api/v1/uploads/: large files in parts, in the shape of S3's multipart uploads."""

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
    """Uploads: `open` → `complete` → `used`. What is complete can become a dataset or a batch (their `upload` field)."""

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
        """Begin an upload: the answer says how the file is to be cut."""
        wanted = UploadCreateSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        upload = services.create_upload(user=request.user, **wanted.validated_data)
        url = reverse("upload-detail", args=[str(upload.uuid)], request=request)
        data = self.get_serializer(upload).data
        return Response(data, status=status.HTTP_201_CREATED, headers={"Location": url})

    @extend_schema(request=SignSerializer, responses=SignedPartsSerializer)
    @action(detail=True, methods=["post"], filterset_class=None)
    def sign(self, request: Request, uuid: str) -> Response:
        """Addresses to PUT parts to: signed ones of S3, or the platform's own."""
        wanted = SignSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        given = wanted.validated_data
        urls = services.sign_parts(
            upload=self.get_object(), numbers=given["part_numbers"], checksums=given["checksums"]
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
        """One part of an upload whose files the platform keeps itself (with S3, parts go to S3)."""
        length = request.headers.get("Content-Length", "")
        tag = services.put_part(upload=self.get_object(), number=int(number), source=request._request, length=length)
        return Response({"PartNumber": int(number), "ETag": f'"{tag}"'}, headers={"ETag": f'"{tag}"'})

    @extend_schema(request=CompleteSerializer, responses=UploadSerializer)
    @action(detail=True, methods=["post"], filterset_class=None)
    def complete(self, request: Request, uuid: str) -> Response:
        """Make the parts one file. Asking again after a lost answer gives the same answer."""
        wanted = CompleteSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        parts = wanted.validated_data.get("parts")
        tags = None if parts is None else {part["PartNumber"]: part["ETag"] for part in parts}
        upload = services.complete_upload(upload=self.get_object(), tags=tags)
        return Response(self.get_serializer(upload).data)

    def perform_destroy(self, instance: Upload) -> None:
        """Stop an upload; what has arrived is removed."""
        services.abort_upload(user=self.request.user, upload=instance)
