"""Documents: dataclasses that are stored or sent as JSON, with one form for writing and one for reading.

A number that is undefined is NaN in Python and null in JSON, which has no word for it.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Self, TypeVar

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, WrapSerializer

Kind = TypeVar("Kind")
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""The type of a field whose number may be undefined."""
OrNone = BeforeValidator(lambda value: value or None)
"""For a field whose empty document ({}) means that there is none."""
NoneAsEmpty = WrapSerializer(lambda value, write: {} if value is None else write(value))
"""For a field whose JSON is the empty document where there is none."""
LeftOut = Field(exclude_if=lambda value: value is None)
"""For a field that the JSON leaves out where it is None."""


class Document:
    """The base of a dataclass that is stored or sent as JSON. Fields may be documents, and lists and dicts of them."""

    def to_json(self) -> dict[str, Any]:
        """What `json.dumps` takes: numbers, texts, lists and dicts, and None for what is undefined."""
        values: dict[str, Any] = json.loads(_adapter(type(self)).dump_json(self, by_alias=True))
        return values

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """The inverse of `to_json`. Raises ValueError that names a field that is missing or of another type."""
        return read(_adapter(cls), values)


def read(adapter: TypeAdapter[Kind], values: Any) -> Kind:
    """What `adapter` makes of JSON values. Raises ValueError with one sentence about the first field that is wrong."""
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{error.title} cannot be read: {where}: {first['msg']}.") from error


# Made once for each kind of document, since that takes longer than using it.
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def _adapter(kind: type[Kind]) -> TypeAdapter[Kind]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def to_json(value: Any) -> Any:
    """Any value of JSON's kinds with NaN and infinities as None; documents in it as their JSON."""
    if isinstance(value, Document):
        return value.to_json()
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
