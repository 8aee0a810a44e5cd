"""What documents are as JSON, and what is said of JSON that is none."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest

from ml_core.documents import Document, LeftOut, NoneAsEmpty, Number, OrNone, to_json


@dataclass(frozen=True)
class Inner(Document):
    score: Number
    name: str = "x"


@dataclass(frozen=True)
class Outer(Document):
    inner: list[Inner]
    path: Path
    single: Annotated[Inner | None, OrNone, NoneAsEmpty] = None
    steps: Annotated[int | None, LeftOut] = None
    free: dict[str, Any] = field(default_factory=dict)


def test_documents_in_documents_go_and_come_back() -> None:
    outer = Outer([Inner(0.5), Inner(1.0, "y")], Path("/a"), Inner(2.0), 3, {"list": [1, None]})
    values = outer.to_json()
    assert values == {
        "inner": [{"score": 0.5, "name": "x"}, {"score": 1.0, "name": "y"}],
        "path": "/a",
        "single": {"score": 2.0, "name": "x"},
        "steps": 3,
        "free": {"list": [1, None]},
    }
    assert Outer.from_json(json.loads(json.dumps(values))) == outer


def test_what_is_undefined_is_null_and_what_is_absent_is_left_out() -> None:
    values = Outer([Inner(math.nan)], Path("/a"), free={"x": math.inf}).to_json()
    assert values == {"inner": [{"score": None, "name": "x"}], "path": "/a", "single": {}, "free": {"x": None}}
    back = Outer.from_json(values)
    assert math.isnan(back.inner[0].score)
    assert (back.single, back.steps) == (None, None)


@pytest.mark.parametrize(
    ("values", "said"),
    [({"path": "/a"}, "inner: Field required"), ({"inner": [{"score": "high"}], "path": "/a"}, "inner.0.score: Input")],
)
def test_json_that_is_no_such_document_is_refused_with_the_field(values: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"Outer cannot be read: {said}"):
        Outer.from_json(values)


def test_any_value_becomes_json() -> None:
    found = to_json({"a": [math.nan, 1.5], "b": (Inner(math.nan),), "c": "text"})
    assert found == {"a": [None, 1.5], "b": [{"score": None, "name": "x"}], "c": "text"}
