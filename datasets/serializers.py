"""The serializers of the datasets API: what it answers and what it accepts."""

from __future__ import annotations

import json
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.fields import empty
from rest_framework.reverse import reverse

from datasets.models import Dataset, DatasetClass, Sample
from ml_core.dataset.reading import Reading

READING_NAMES = "background, ignore, merge and objects"


class ClassSerializer(serializers.ModelSerializer[DatasetClass]):
    value = serializers.IntegerField()

    class Meta:
        model = DatasetClass
        fields = ["value", "name", "color", "is_background"]


class IssueSerializer(serializers.Serializer[Any]):
    severity = serializers.ChoiceField(choices=["error", "warning"])
    code = serializers.CharField()
    file = serializers.CharField()
    detail = serializers.CharField()


class DatasetSerializer(serializers.ModelSerializer[Dataset]):
    status = serializers.ChoiceField(choices=Dataset.WORDS.all(), read_only=True)
    source_url = serializers.CharField(read_only=True, allow_null=True)
    modality = serializers.CharField(read_only=True, allow_null=True)
    classes = ClassSerializer(many=True, read_only=True)
    issues = IssueSerializer(many=True, read_only=True)

    class Meta:
        model = Dataset
        fields = [
            "id",
            "project",
            "name",
            "description",
            "family",
            "version",
            "based_on",
            "changes",
            "status",
            "s3_bucket",
            "s3_key",
            "uploaded_at",
            "file_count",
            "total_size_mb",
            "checksum",
            "source_url",
            "modality",
            "dimensions",
            "channels",
            "classes",
            "kind",
            "reading",
            "fingerprint",
            "issues",
            "issue_count",
            "error",
            "progress",
            "timeline",
        ]
        read_only_fields = fields

    def to_representation(self, instance: Dataset) -> dict[str, Any]:
        shown = super().to_representation(instance)
        for name in ("source_url", "modality"):
            shown[name] = shown[name] or None
        return shown


@extend_schema_field(
    {
        "type": "object",
        "properties": {
            "background": {"oneOf": [{"type": "integer"}, {"type": "string"}], "description": "Where no structure is."},
            "ignore": {"type": "array", "items": {}, "description": "Values of pixels that nobody labelled."},
            "merge": {"type": "array", "items": {"type": "array", "items": {}}, "description": "Values of one class."},
            "objects": {"type": "boolean", "description": "Whether values number single objects."},
        },
    }
)
class ReadingField(serializers.JSONField):
    """How masks are read. A value is a number, or a colour as "#rrggbb". The masks decide omitted settings."""

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        try:
            values = json.loads(data) if isinstance(data, str) else data
            unknown = sorted(set(values) - set(Reading.__dataclass_fields__))
            if unknown:
                raise serializers.ValidationError(f"It has no {unknown[0][:50]}. It may have {READING_NAMES}.")
            reading = Reading.from_json(values)
            if fault := reading.fault():
                raise serializers.ValidationError(fault)
            return reading.to_json()
        except (ValueError, TypeError, AttributeError, RecursionError):
            text = f'This is no reading of masks. Send an object with {READING_NAMES}, such as {{"background": 0}}.'
            raise serializers.ValidationError(text) from None


class DatasetCreateSerializer(serializers.Serializer[Any]):
    """Input for a new dataset. Its pairs come in exactly one way: `archive` (multipart), `source_url` or `upload`."""

    name = serializers.CharField(max_length=200)
    description = serializers.CharField(required=False, allow_blank=True, default="", max_length=10_000)
    archive = serializers.FileField(required=False, allow_empty_file=True)
    source_url = serializers.CharField(required=False, max_length=2_000)
    upload = serializers.UUIDField(required=False, help_text="A complete upload (see /api/v1/uploads/).")
    reading = ReadingField(required=False, help_text="How the masks are read; what is left out is decided from them.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if sum(name in attrs for name in ("archive", "source_url", "upload")) != 1:
            text = (
                "Send one of these: a ZIP as `archive` (multipart), its address as `source_url`, a complete `upload`."
            )
            raise serializers.ValidationError({"archive": [serializers.ErrorDetail(text, code="required")]})
        return attrs


class NamesField(serializers.ListField):
    """A list of names. A form may also send one text with one name per line."""

    child = serializers.CharField(max_length=300, trim_whitespace=False)

    def to_internal_value(self, data: Any) -> list[str]:
        if isinstance(data, str):
            data = [name for line in data.replace("\r", "\n").split("\n") if (name := line.strip())]
        names: list[str] = super().to_internal_value(data)
        return names

    def get_value(self, dictionary: Any) -> Any:
        if not hasattr(dictionary, "getlist"):
            return super().get_value(dictionary)
        texts = dictionary.getlist(self.field_name)
        return "\n".join(texts) if texts else empty


class VersionCreateSerializer(serializers.Serializer[Any]):
    """Input for a new version of a dataset: new pairs, names of samples to leave out, another reading of the masks.

    At least one of these is needed. New pairs come in at most one way: `archive` (multipart), `source_url` or `upload`.
    """

    archive = serializers.FileField(required=False, allow_empty_file=True)
    source_url = serializers.CharField(required=False, max_length=2_000)
    upload = serializers.UUIDField(required=False, help_text="A complete upload (see /api/v1/uploads/).")
    leave_out = NamesField(required=False, help_text="Names of samples to leave out of the new version.")
    reading = ReadingField(required=False, help_text="Another background, or other ignored values, than before.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if sum(name in attrs for name in ("archive", "source_url", "upload")) > 1:
            text = "Send new pairs in only one way: as `archive` (multipart), as `source_url` or as `upload`."
            raise serializers.ValidationError({"archive": [serializers.ErrorDetail(text, code="invalid")]})
        return attrs


class ClassUpdateSerializer(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=100)
    color = serializers.RegexField(r"^#[0-9a-fA-F]{6}$", required=False)


class SampleSerializer(serializers.ModelSerializer[Sample]):
    image_url = serializers.SerializerMethodField()
    mask_url = serializers.SerializerMethodField()
    thumbnail_url = serializers.SerializerMethodField()
    shape = serializers.ListField(child=serializers.IntegerField(), read_only=True)
    spacing = serializers.ListField(child=serializers.FloatField(), read_only=True, allow_null=True)

    class Meta:
        model = Sample
        fields = ["id", "name", "split", "shape", "spacing", "image_url", "mask_url", "thumbnail_url"]
        read_only_fields = fields

    def _url(self, sample: Sample, what: str) -> str:
        kwargs = {"pk": sample.dataset_id, "sample_id": sample.pk}
        url: str = reverse(f"dataset-sample-{what}", kwargs=kwargs, request=self.context.get("request"))
        return url

    @extend_schema_field(serializers.URLField)
    def get_image_url(self, sample: Sample) -> str:
        return self._url(sample, "image")

    @extend_schema_field(serializers.URLField)
    def get_mask_url(self, sample: Sample) -> str:
        return self._url(sample, "mask")

    @extend_schema_field(serializers.URLField)
    def get_thumbnail_url(self, sample: Sample) -> str:
        return self._url(sample, "thumbnail")
