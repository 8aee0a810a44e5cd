"""Additions to the OpenAPI document: the single user, `Idempotency-Key`, and two errors that the library does not know."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.utils import OpenApiParameter
from drf_standardized_errors.openapi import AutoSchema
from rest_framework import serializers

IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    str,
    OpenApiParameter.HEADER,
    description="The same key and body give the first answer again for 24 h (with `Idempotent-Replay: true`) and do nothing "
    "twice; the same key with another body gives 409.",
)


class Schema(AutoSchema):
    """Says of every POST that it may be sent again."""

    def get_override_parameters(self) -> list[Any]:
        parameters: list[Any] = super().get_override_parameters()
        return [*parameters, IDEMPOTENCY_KEY] if self.method == "POST" else parameters


class LocalUserScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]  # registers itself
    target_class = "medseg_site.shared.base.local_user.LocalUserAuthentication"
    name = "localUser"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        text = "No login while MEDSEG_SINGLE_USER is on; requests of other sites' pages are refused."
        return {"type": "apiKey", "in": "header", "name": "Origin", "description": text}


class ClientErrorSerializer(serializers.Serializer[Any]):
    code = serializers.CharField()
    detail = serializers.CharField()
    attr = serializers.CharField(allow_null=True)


class WrongStateResponseSerializer(serializers.Serializer[Any]):
    """409: the row is not in a state in which this can be done."""

    type = serializers.CharField(default="client_error")
    errors = ClientErrorSerializer(many=True)  # type: ignore[assignment]  # the library's name


class TooLargeResponseSerializer(serializers.Serializer[Any]):
    """413: the upload is larger than a limit."""

    type = serializers.CharField(default="client_error")
    errors = ClientErrorSerializer(many=True)  # type: ignore[assignment]  # the library's name
