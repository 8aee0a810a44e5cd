"""Models as the API shows and takes them."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from datasets.models import Dataset
from datasets.serializers import ClassSerializer
from ml_core.config import ConfigErrors, Hyperparameters, json_schema
from models_app.models import Epoch, SegmentationModel


@extend_schema_field(OpenApiTypes.INT)
class VisibleDatasetField(serializers.PrimaryKeyRelatedField[Dataset]):
    def get_queryset(self) -> QuerySet[Dataset]:
        return Dataset.objects.visible_to(self.context["request"].user)


@extend_schema_field(json_schema())
class HyperparametersField(serializers.DictField):
    """An object whose names and limits come from ml_core.config.Hyperparameters."""

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        values: dict[str, Any] = super().to_internal_value(data)
        try:
            Hyperparameters.from_dict(values)
        except ConfigErrors as error:
            raise serializers.ValidationError({name: [text] for name, text in error.fields.items()}) from None
        return values


class ModelSerializer(serializers.ModelSerializer[SegmentationModel]):
    status = serializers.ChoiceField(choices=SegmentationModel.WORDS.all(), read_only=True)
    hyperparameters = serializers.DictField(read_only=True)
    classes = ClassSerializer(many=True, read_only=True)

    class Meta:
        model = SegmentationModel
        fields = [
            "id",
            "name",
            "version",
            "dataset",
            "status",
            "s3_bucket",
            "s3_key",
            "checksum",
            "hyperparameters",
            "plan",
            "metrics",
            "trained_at",
            "created_at",
            "progress",
            "error",
            "warnings",
            "attempt",
            "classes",
        ]
        read_only_fields = fields


class ModelCreateSerializer(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=200)
    dataset = VisibleDatasetField()
    hyperparameters = HyperparametersField(required=False, default=dict)


class EpochSerializer(serializers.ModelSerializer[Epoch]):
    class Meta:
        model = Epoch
        fields = [
            "epoch",
            "train_loss",
            "val_loss",
            "val_dice",
            "val_iou",
            "learning_rate",
            "seconds",
            "images_per_second",
        ]


class ArchitectureSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    label = serializers.CharField()  # type: ignore[assignment]  # the contract's name, which shadows the base's
    summary = serializers.CharField()
    dimensions = serializers.IntegerField()
    encoders = serializers.ListField(child=serializers.CharField())
    parameters = serializers.DictField(help_text="JSON Schema of the hyperparameters")
