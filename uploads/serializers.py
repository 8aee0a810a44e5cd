"""The serializers of the uploads API: what it answers and what it accepts. Parts have the field names of S3."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from uploads.models import Upload


class UploadSerializer(serializers.ModelSerializer[Upload]):
    id = serializers.UUIDField(source="uuid", read_only=True)
    part_count = serializers.IntegerField(read_only=True)

    class Meta:
        model = Upload
        fields = [
            "id",
            "project",
            "purpose",
            "file_name",
            "size",
            "part_size",
            "part_count",
            "sha256",
            "state",
            "created_at",
            "updated_at",
        ]
        read_only_fields = fields


class UploadCreateSerializer(serializers.Serializer[Any]):
    file_name = serializers.CharField(max_length=1000)
    size = serializers.IntegerField(max_value=2**53, help_text="Size of the file in bytes.")
    purpose = serializers.ChoiceField(choices=["dataset", "batch"], help_text="What the file will become.")
    sha256 = serializers.CharField(
        required=False, allow_blank=True, default="", max_length=100, help_text="SHA-256 of the file (hexadecimal)."
    )


class SignSerializer(serializers.Serializer[Any]):
    part_numbers = serializers.ListField(child=serializers.IntegerField(min_value=1, max_value=10_000), max_length=100)
    checksums = serializers.DictField(
        child=serializers.CharField(max_length=100),
        required=False,
        default=dict,
        help_text="SHA-256 (hexadecimal) of parts, by number. The stored file is compared with them.",
    )


class SignedPartSerializer(serializers.Serializer[Any]):
    PartNumber = serializers.IntegerField()
    url = serializers.CharField(help_text="Address to PUT the part to. Without a host it is on the platform.")


class SignedPartsSerializer(serializers.Serializer[Any]):
    parts = SignedPartSerializer(many=True)


class PartSerializer(serializers.Serializer[Any]):
    PartNumber = serializers.IntegerField()
    Size = serializers.IntegerField()
    ETag = serializers.CharField()
    sha256 = serializers.CharField(help_text="The one announced when the part was signed, or empty.")


class PartsSerializer(serializers.Serializer[Any]):
    parts = PartSerializer(many=True)


class PartTagSerializer(serializers.Serializer[Any]):
    PartNumber = serializers.IntegerField(min_value=1, max_value=10_000)
    ETag = serializers.CharField(max_length=200)


class StoredPartSerializer(PartTagSerializer):
    """The answer to a part that was sent to the platform itself. The header holds the ETag too."""


class CompleteSerializer(serializers.Serializer[Any]):
    parts = PartTagSerializer(
        many=True, required=False, help_text="Without this list, the parts are taken as the store holds them."
    )
