"""The serializers of the models API: what it answers and what it accepts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.fields import empty
from rest_framework.utils import html

from datasets.models import Dataset
from datasets.serializers import ClassSerializer
from medseg_site.shared.web.api import VisibleRowField
from ml_core.planning.hyperparameters import json_schema
from models_app import services
from models_app.models import Epoch, SegmentationModel

# One request may name so many hyperparameters. There are far fewer.
MAX_NAMES = 50


def refusal(error: services.HyperparametersError) -> serializers.ValidationError:
    """An answer with HTTP 400 that names every wrong hyperparameter: `attr` is `hyperparameters.<name>`."""
    return serializers.ValidationError({"hyperparameters": {name: [text] for name, text in error.fields.items()}})


def _schema() -> dict[str, Any]:
    """The JSON Schema of ml_core, except that `warm_start` is the id of a model here, and not a path."""
    schema = json_schema()
    start = schema["properties"]["warm_start"]
    start["description"] = "The id of an earlier model whose weights the training starts from."
    start["oneOf"] = [{"type": "integer"}, {"type": start.pop("type")}]
    return schema


def _json_value(text: Any) -> Any:
    """What the text of a form's field says in JSON; the text itself where it is not JSON, such as the name of a network."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return text


@extend_schema_field(_schema())
class HyperparametersField(serializers.DictField):
    """Hyperparameters by name. The table in ml_core.planning.hyperparameters says which there are and their limits.

    A form sends it as JSON text in one field, or as one field for each name (`hyperparameters.epochs`).
    """

    default_error_messages: ClassVar = {"not_a_dict": 'This is not a JSON object. Send one, such as {{"epochs": 20}}.'}

    def get_value(self, dictionary: Mapping[str, Any]) -> Any:
        if not html.is_html_input(dictionary):
            return super().get_value(dictionary)
        own_name = str(self.field_name)
        if own_name in dictionary:
            return dictionary[own_name]
        fields = html.parse_html_dict(dictionary, prefix=own_name)
        return {name: _json_value(text) for name, text in fields.items()} or empty

    def to_internal_value(self, data: Any) -> dict[str, object]:
        if isinstance(data, str):
            data = _json_value(data)
        values: dict[str, object] = super().to_internal_value(data)
        # The answer repeats every unknown name, so the names must be few, short and printable.
        if len(values) > MAX_NAMES or any(len(name) > 100 or not name.isprintable() for name in values):
            raise serializers.ValidationError(f"Send at most {MAX_NAMES} names, each of a few printable characters.")
        try:
            services.check_hyperparameters(user=self.context["request"].user, values=values)
        # A whole number of hundreds of digits overflows.
        except OverflowError:
            raise serializers.ValidationError("A number is too large. Send a smaller one.") from None
        except services.HyperparametersError as error:
            raise serializers.ValidationError({name: [text] for name, text in error.fields.items()}) from None
        return values


class SplitSerializer(serializers.Serializer[Any]):
    train = serializers.IntegerField()
    val = serializers.IntegerField()
    test = serializers.IntegerField()
    grouping = serializers.CharField(help_text="Which samples stay in one part of the split")


class ModelSerializer(serializers.ModelSerializer[SegmentationModel]):
    status = serializers.ChoiceField(choices=SegmentationModel.WORDS.all(), read_only=True)
    hyperparameters = serializers.DictField(read_only=True)
    classes = ClassSerializer(many=True, read_only=True)
    dataset_version = serializers.IntegerField(source="dataset.version", read_only=True, default=None)
    split = SplitSerializer(source="split_numbers", read_only=True, allow_null=True)

    class Meta:
        model = SegmentationModel
        fields = [
            "id",
            "project",
            "name",
            "version",
            "dataset",
            "dataset_version",
            "split",
            "status",
            "s3_bucket",
            "s3_key",
            "checksum",
            "hyperparameters",
            "plan",
            "estimate",
            "metrics",
            "decisions",
            "trained_at",
            "created_at",
            "progress",
            "error",
            "warnings",
            "attempt",
            "timeline",
            "classes",
        ]
        read_only_fields = fields


class ModelCreateSerializer(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=200)
    dataset = VisibleRowField(Dataset)
    hyperparameters = HyperparametersField(required=False, default=dict)


class ResumeSerializer(serializers.Serializer[Any]):
    epochs = serializers.IntegerField(
        required=False, min_value=1, max_value=10**9, help_text="The total, with the epochs that were trained already"
    )
    time_budget_seconds = serializers.IntegerField(
        required=False, min_value=1, max_value=10**9, help_text="The total, with the seconds that were used already"
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Pass on the unknown names too, so that the service refuses each of them by name."""
        others = {name: value for name, value in dict(self.initial_data or {}).items() if name not in self.fields}
        return {**attrs, **others}


class PlanAskSerializer(serializers.Serializer[Any]):
    dataset = VisibleRowField(Dataset)
    hyperparameters = HyperparametersField(required=False, default=dict)


class PlanSerializer(serializers.Serializer[Any]):
    hyperparameters = serializers.DictField(help_text="Every value that a training would use")
    reasons = serializers.DictField(child=serializers.CharField(), help_text="Name → why, in one sentence")


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
    # The API calls this field `label`, which hides an attribute of the base class.
    label = serializers.CharField()  # type: ignore[assignment]
    summary = serializers.CharField()
    dimensions = serializers.IntegerField()
    encoders = serializers.ListField(child=serializers.CharField())
    parameters = serializers.DictField(help_text="JSON Schema of the hyperparameters")
