"""Inferences and batches as the API shows and takes them."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.reverse import reverse

from inference.models import InferenceBatch, InferenceResult
from medseg_site.shared.web.api import VisibleRowField
from models_app.models import SegmentationModel


class InferenceClassSerializer(serializers.Serializer[Any]):
    value = serializers.IntegerField()
    name = serializers.CharField()
    color = serializers.CharField()
    pixels = serializers.IntegerField()
    fraction = serializers.FloatField()
    volume_ml = serializers.FloatField(allow_null=True)


class InferenceSerializer(serializers.ModelSerializer[InferenceResult]):
    status = serializers.ChoiceField(choices=InferenceResult.WORDS.all(), read_only=True)
    classes = InferenceClassSerializer(many=True, read_only=True)
    warnings = serializers.ListField(child=serializers.CharField(), read_only=True)
    image_url = serializers.SerializerMethodField()
    mask_url = serializers.SerializerMethodField()
    overlay_url = serializers.SerializerMethodField()
    certainty_url = serializers.SerializerMethodField()

    class Meta:
        model = InferenceResult
        fields = [
            "id",
            "project",
            "model",
            "batch",
            "status",
            "created_at",
            "image_name",
            "input_image_s3_key",
            "output_image_s3_key",
            "shape",
            "spacing",
            "seconds",
            "classes",
            "metrics",
            "confidence",
            "warnings",
            "error",
            "progress",
            "timeline",
            "image_url",
            "mask_url",
            "overlay_url",
            "certainty_url",
        ]
        read_only_fields = fields

    def _url(self, row: InferenceResult, what: str, *, ready: bool) -> str | None:
        if not ready:
            return None
        url: str = reverse(f"inference-{what}", args=[row.pk], request=self.context.get("request"))
        return url

    @extend_schema_field(serializers.URLField)
    def get_image_url(self, row: InferenceResult) -> str | None:
        return self._url(row, "image", ready=True)

    @extend_schema_field(serializers.URLField(allow_null=True))
    def get_mask_url(self, row: InferenceResult) -> str | None:
        return self._url(row, "mask", ready=bool(row.output_image_s3_key))

    @extend_schema_field(serializers.URLField(allow_null=True))
    def get_overlay_url(self, row: InferenceResult) -> str | None:
        return self._url(row, "overlay", ready=bool(row.output_image_s3_key))

    @extend_schema_field(serializers.URLField(allow_null=True))
    def get_certainty_url(self, row: InferenceResult) -> str | None:
        return self._url(row, "certainty", ready=bool(row.certainty_key))


class InferenceCreateSerializer(serializers.Serializer[Any]):
    model = VisibleRowField(SegmentationModel)
    image = serializers.FileField(allow_empty_file=True)
    mask = serializers.FileField(required=False, allow_empty_file=True)


class BatchCreateSerializer(serializers.Serializer[Any]):
    """`archive` (multipart) or `upload` (JSON)."""

    model = VisibleRowField(SegmentationModel)
    archive = serializers.FileField(required=False, allow_empty_file=True)
    upload = serializers.UUIDField(required=False, help_text="A complete upload (see /api/v1/uploads/).")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("archive" in attrs) == ("upload" in attrs):
            text = "Send a ZIP of images as `archive` (multipart) or a complete `upload` (JSON), one of the two."
            raise serializers.ValidationError({"archive": [serializers.ErrorDetail(text, code="required")]})
        return attrs


class BatchSerializer(serializers.ModelSerializer[InferenceBatch]):
    status = serializers.ChoiceField(choices=InferenceBatch.WORDS.all(), read_only=True)
    total = serializers.IntegerField(read_only=True)
    completed = serializers.IntegerField(read_only=True)
    failed = serializers.IntegerField(read_only=True)
    progress = serializers.SerializerMethodField()

    class Meta:
        model = InferenceBatch
        fields = [
            "id",
            "project",
            "model",
            "status",
            "cancel_requested",
            "created_at",
            "archive_name",
            "total",
            "completed",
            "failed",
            "progress",
            "timeline",
            "issues",
            "error",
        ]
        read_only_fields = fields

    @extend_schema_field(serializers.DictField)
    def get_progress(self, batch: Any) -> dict[str, Any]:
        ended = batch.completed + batch.failed
        return batch.progress or {
            "done": ended,
            "total": batch.total,
            "fraction": ended / batch.total if batch.total else 0.0,
        }
