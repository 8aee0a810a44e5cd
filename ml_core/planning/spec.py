"""The type of an entry in the table of hyperparameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# The headings under which pages and the command line show the table.
NETWORK = "Network"
IMAGES = "Images and patches"
LEARNING = "Learning"
TIME = "Data and time"
AFTER = "After training"

Value = str | int | float


@dataclass(frozen=True)
class Spec:
    """One entry of the table."""

    group: str
    """The heading under which it is shown."""
    label: str
    """Its name for people."""
    help: str
    """A sentence or two that explain it to people."""
    default: Value | None = None
    """The planned value for every dataset; None if a rule of ml_core.planning.rules plans it."""
    reason: str = ""
    """One sentence that says why the default is a good one."""
    unit: str = ""
    """The unit of a number, in the plural, such as "pixels"."""
    minimum: float | None = None
    """The least value, inclusive."""
    maximum: float | None = None
    """The largest value, inclusive."""
    multiple_of: int | None = None
    """A value must be a multiple of this."""
    choices: dict[str, str] | None = None
    """Value → its name for people; None if any value in the limits will do."""
    choice_groups: dict[str, list[str]] | None = None
    """Heading → values, to show many choices in groups."""
    type: type[Value] = str
    """The type of a value, taken from the annotation of the field in Hyperparameters."""


def entry(group: str, label: str, help: str, **more: Any) -> Any:
    """Make a field of Hyperparameters that carries its Spec. `more` are the other fields of the Spec."""
    return field(metadata={"spec": Spec(group, label, help, **more)})
