"""The decisions that a training takes on its validation cases after the network is trained. The package keeps them."""

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
    """What a model does besides running its network once, because that scored better on the validation cases."""

    mirroring: str = "none"
    """Which mirrored copies of an image the predictions are averaged over: "none", "flips" (along all axes) or
    "flips and turns" (rows and columns swapped as well)."""
    postprocessing: Postprocessing | None = None
    """How label maps are cleaned; None leaves them as they are."""


@dataclass(frozen=True)
class MirroringDecision(Document):
    """Whether predictions are averaged over mirrored copies of the image."""

    used: str
    """One of the values of `Refinements.mirroring`."""
    reason: str
    """A sentence for people."""
    dice: Annotated[dict[str, Number] | None, LeftOut] = None
    """Value of `Refinements.mirroring` → the mean Dice with it; None if it was not measured."""
    cases: Annotated[int | None, LeftOut] = None
    """On how many cases it was measured."""


@dataclass(frozen=True)
class PostprocessingDecision(Document):
    """Whether label maps are cleaned."""

    used: PostprocessingField | None
    """What is done to each class; None if nothing is done."""
    reason: str
    """A sentence for people."""
    measured: Annotated[Report | None, LeftOut] = None
    """What was tried, and its scores; None if nothing was measured."""
    cases: Annotated[int | None, LeftOut] = None
    """On how many cases it was measured."""


@dataclass(frozen=True)
class Decisions(Document):
    """All decisions. A training that was stopped before it could measure has none."""

    serving: Annotated[Serving | None, LeftOut] = None
    """Which runtime runs the network."""
    mirroring: Annotated[MirroringDecision | None, LeftOut] = None
    """Whether predictions are averaged over mirrored copies."""
    postprocessing: Annotated[PostprocessingDecision | None, LeftOut] = None
    """Whether label maps are cleaned."""

    def refinements(self) -> Refinements:
        """What the decisions make every prediction do."""
        return Refinements(
            mirroring=self.mirroring.used if self.mirroring else "none",
            postprocessing=self.postprocessing.used if self.postprocessing else None,
        )
