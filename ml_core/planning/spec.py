"""What the table of hyperparameters says of each of them."""

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
    """The heading that it stands under."""
    label: str
    help: str
    """A sentence or two for people."""
    default: Value | None = None
    """What is planned for every dataset; None: a rule of ml_core.planning.rules plans it."""
    reason: str = ""
    """Why the default is a good one, in a sentence."""
    unit: str = ""
    minimum: float | None = None
    """Inclusive."""
    maximum: float | None = None
    """Inclusive."""
    multiple_of: int | None = None
    choices: dict[str, str] | None = None
    """Value → what people read."""
    choice_groups: dict[str, list[str]] | None = None
    """Heading → choices, where there are many."""
    type: type[Value] = str
    """As the entry's annotation says."""


def entry(group: str, label: str, help: str, **more: Any) -> Any:
    """A field of the table. more: as Spec's fields."""
    return field(metadata={"spec": Spec(group, label, help, **more)})
