"""The request for a training: the hyperparameters that a user chose, checked against the table.

The planner adds the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from ml_core.errors import ConfigError, count_of
from ml_core.networks.catalogue import ARCHITECTURES
from ml_core.planning.hyperparameters import specs
from ml_core.planning.spec import Spec, Value

# Networks that one training may train and that predict together.
MAX_MEMBERS = 20
# In mm or pixels; electron microscopy has voxels of some 1e-6 mm.
MIN_SPACING, MAX_SPACING = 1e-7, 1e3
CHOSEN = "You chose it."

T = TypeVar("T")


class ConfigErrors(ConfigError):  # noqa: N818 (several errors in one)
    """All problems of a set of hyperparameters. `fields` maps the name of each wrong one to a sentence."""

    def __init__(self, fields: dict[str, str]) -> None:
        self.fields = fields
        super().__init__("invalid_hyperparameters", " ".join(f"{name}: {text}" for name, text in fields.items()))


@dataclass(frozen=True)
class TrainingRequest:
    """The hyperparameters that a user chose. Make it with `from_json`, which checks them."""

    values: Mapping[str, Value] = field(default_factory=dict)
    """Name → value of each chosen hyperparameter."""

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> TrainingRequest:
        """Check the values and make a request of them. A value of None means that the planner chooses.

        Raises ConfigErrors for unknown names, for values that cannot be used, and for values that conflict.
        """
        table = specs()
        wrong = {name: _unknown() for name in values if name not in table}
        given = {
            name: _as_number(value, table[name])
            for name, value in values.items()
            if name in table and value is not None
        }
        problems = {name: text for name, value in given.items() if (text := _problem(value, table[name]))}
        request = cls(cast(dict[str, Value], given))
        wrong |= problems or _architecture_conflicts(request) or _ensemble_problem(request) or _spacing_problem(request)
        if wrong:
            raise ConfigErrors(wrong)
        return request

    def to_json(self) -> dict[str, Value]:
        """Return the chosen hyperparameters as JSON values."""
        return dict(self.values)

    def get(self, name: str) -> Value | None:
        """Return the chosen value, or None if the planner chooses."""
        return self.values.get(name)

    def or_default(self, name: str) -> Value:
        """Return the chosen value, otherwise the table's default. Raises LookupError if there is neither."""
        value = self.values.get(name, specs()[name].default)
        if value is None:
            raise LookupError(f"{name} has neither a default in the table nor a rule")
        return value

    def asks_for(self, *names: str) -> bool:
        """Whether the user chose at least one of these hyperparameters."""
        return any(name in self.values for name in names)


class Chooser:
    """Chooses hyperparameters one by one, and collects the `values` and `reasons`.

    The user's choice goes before the plan's.
    """

    def __init__(self, request: TrainingRequest) -> None:
        self.request = request
        self.values: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}

    def __call__(self, name: str, planned: T, reason: str) -> T:
        """Choose the user's value, otherwise `planned` for the given reason, and return it."""
        asked = self.request.get(name)
        self.values[name] = planned if asked is None else asked
        self.reasons[name] = reason if asked is None else CHOSEN
        return cast(T, self.values[name])

    def default(self, name: str) -> Any:
        """Choose the user's value, otherwise the table's default, and return it."""
        return self(name, self.request.or_default(name), specs()[name].reason)

    def rest(self) -> None:
        """Choose all hyperparameters that were not chosen yet, by `default`."""
        for name in specs():
            if name not in self.values:
                self.default(name)


def parse_spacing(text: str) -> list[float]:
    """Read a spacing such as "2.5 0.8 0.8" into [2.5, 0.8, 0.8]. Raises ValueError if a part is not a number."""
    return [float(part) for part in text.replace(",", " ").replace("x", " ").split()]


def _unknown() -> str:
    return f"There is no such hyperparameter. There are: {', '.join(specs())}."


def _as_number(value: object, spec: Spec) -> object:
    """Convert a number to the type of the hyperparameter, because 2 and 2.0 are the same number in JSON.

    Any other value is returned as it is, so that `_problem` refuses it.
    """
    if spec.type is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if spec.type is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _problem(value: object, spec: Spec) -> str | None:
    """Return a sentence that says why a value cannot be used, or None if it can."""
    if type(value) is not spec.type:
        kind = "text" if spec.type is str else "a whole number" if spec.type is int else "a number"
        return f"{_shown(value)} is not {kind}."
    if spec.choices and value not in spec.choices:
        return f"{_shown(value)} is not one of: {', '.join(spec.choices)}."
    if not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        return "It must be a finite number."
    if spec.minimum is not None and value < spec.minimum:
        return f"{value} is too small. The least is {spec.minimum:g}."
    if spec.maximum is not None and value > spec.maximum:
        return f"{value} is too large. The most is {spec.maximum:g}."
    if spec.multiple_of and value % spec.multiple_of:
        return f"{value} is not a multiple of {spec.multiple_of}."
    return None


def _shown(value: object) -> str:
    return repr(value)[:80]


def _architecture_conflicts(request: TrainingRequest) -> dict[str, str]:
    """Return, by hyperparameter, a sentence for each chosen value that the chosen architecture does not allow."""
    wrong: dict[str, str] = {}
    name, encoder, size, configuration = (
        request.get(name) for name in ("architecture", "encoder", "patch_size", "configuration")
    )
    if not isinstance(name, str):
        return wrong
    architecture = ARCHITECTURES[name]
    if encoder and encoder not in architecture.encoders:
        wrong["encoder"] = (
            f"{architecture.label} cannot use {encoder}. Choose one of: {', '.join(architecture.encoders)}."
        )
    if isinstance(size, int) and size < architecture.minimum_size:
        wrong["patch_size"] = f"{architecture.label} needs patches of at least {architecture.minimum_size} pixels."
    if configuration and (configuration == "3d") != (architecture.dimensions == 3):
        wrong["configuration"] = f"{architecture.label} is a {architecture.dimensions}D network."
    return wrong


def _ensemble_problem(request: TrainingRequest) -> dict[str, str]:
    folds, seeds = (int(request.get(name) or 1) for name in ("folds", "seeds"))
    if folds * seeds <= MAX_MEMBERS:
        return {}
    both = f"{count_of(folds, 'fold')} times {count_of(seeds, 'seed')}"
    return {"seeds": f"{both} make {folds * seeds} networks; at most {MAX_MEMBERS} can be trained together."}


def _spacing_problem(request: TrainingRequest) -> dict[str, str]:
    text = request.get("spacing")
    if text is None:
        return {}
    try:
        steps = parse_spacing(str(text)[:100])
    except ValueError:
        steps = []
    if len(steps) in (2, 3) and all(MIN_SPACING <= step <= MAX_SPACING for step in steps):
        return {}
    limits = f"{MIN_SPACING:g} to {MAX_SPACING:g}"
    return {"spacing": f"Give two or three numbers from {limits} with spaces between them, such as “2.5 0.8 0.8”."}
