"""Documents are dataclasses that are stored or sent as JSON; each has one way to write it and one way to read it.

An undefined number is NaN in Python and null in JSON, because JSON has no NaN.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Self, TypeVar

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, WrapSerializer

Kind = TypeVar("Kind")
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""Type of a field whose number may be undefined: None is read as NaN."""
OrNone = BeforeValidator(lambda value: value or None)
"""Marks a field that reads an empty document ({}) as None."""
NoneAsEmpty = WrapSerializer(lambda value, write: {} if value is None else write(value))
"""Marks a field that writes None as an empty document ({})."""
LeftOut = Field(exclude_if=lambda value: value is None)
"""Marks a field that the JSON omits while it is None."""


class Document:
    """Base class of a dataclass that is stored or sent as JSON.

    A field may hold documents, or lists or dicts of them.
    """

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps` accepts: numbers, texts, lists, dicts, and None for an undefined number."""
        values: dict[str, Any] = json.loads(_adapter(type(self)).dump_json(self, by_alias=True))
        return values

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Rebuild the document that `to_json` wrote.

        Raises ValueError naming the field that is missing or has a wrong type.
        """
        return read(_adapter(cls), values)


def read(adapter: TypeAdapter[Kind], values: Any) -> Kind:
    """Validate JSON values with `adapter` and return the result. Raises ValueError naming the first wrong field."""
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{error.title} cannot be read: {where}: {first['msg']}.") from error


# Building an adapter takes longer than using it, so each document type gets one that is kept.
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def _adapter(kind: type[Kind]) -> TypeAdapter[Kind]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def to_json(value: Any) -> Any:
    """Convert a value for JSON: documents become dicts, tuples become lists, NaN and infinities become None."""
    if isinstance(value, Document):
        return value.to_json()
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
