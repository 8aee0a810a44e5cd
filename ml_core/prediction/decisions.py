"""What a training measured on its validation cases beside the network, and what came of it. Kept in the model package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import PlainSerializer, PlainValidator

from ml_core.documents import Document, LeftOut, Number
from ml_core.prediction.postprocessing import Postprocessing, Report
from ml_core.prediction.runtimes import Serving

PostprocessingField = Annotated[
    Postprocessing,
    PlainValidator(lambda values: values if isinstance(values, Postprocessing) else Postprocessing.from_dict(values)),
    PlainSerializer(Postprocessing.to_dict),
]


@dataclass(frozen=True)
class Refinements:
    """What a model does beside one pass of its network, because it helped on the validation cases."""

    mirroring: str = "none"
    """"none", "flips" (along all axes) or "flips and turns" (rows and columns swapped as well); answers are averaged."""
    postprocessing: Postprocessing | None = None
    """How label maps are cleaned."""


@dataclass(frozen=True)
class MirroringDecision(Document):
    """Whether the answers of mirrored copies of an image are averaged."""

    used: str
    """One of the words of `Refinements.mirroring`."""
    reason: str
    """A sentence for people."""
    dice: Annotated[dict[str, Number] | None, LeftOut] = None
    """The mean Dice with each of these words; None where it was not measured."""
    cases: Annotated[int | None, LeftOut] = None
    """On how many cases it was measured."""


@dataclass(frozen=True)
class PostprocessingDecision(Document):
    """Whether label maps are cleaned."""

    used: PostprocessingField | None
    """What is done to each class; None where nothing is done."""
    reason: str
    """A sentence for people."""
    measured: Annotated[Report | None, LeftOut] = None
    """What was tried, with its numbers; None where it was not measured."""
    cases: Annotated[int | None, LeftOut] = None
    """On how many cases it was measured."""


@dataclass(frozen=True)
class Decisions(Document):
    """All of them. They are missing where a training was stopped before."""

    serving: Annotated[Serving | None, LeftOut] = None
    """What runs the network."""
    mirroring: Annotated[MirroringDecision | None, LeftOut] = None
    """Whether mirrored copies answer as well."""
    postprocessing: Annotated[PostprocessingDecision | None, LeftOut] = None
    """Whether label maps are cleaned."""

    def refinements(self) -> Refinements:
        """What is to be done at every prediction."""
        return Refinements(
            mirroring=self.mirroring.used if self.mirroring else "none",
            postprocessing=self.postprocessing.used if self.postprocessing else None,
        )
