"""What an entry of the catalogue says of a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import nn

Arguments = dict[str, Any]
"""What a network is built with beside encoder, channels and classes, as JSON. A plan keeps it."""
Choice = tuple[float, str]
"""A planned value and its reason."""


@dataclass(frozen=True)
class Use:
    """What a network's arguments follow from."""

    encoder: str
    patch: tuple[int, ...]
    """Pixels per axis that the network is trained on."""
    spacing: tuple[float, ...]
    """Size of a pixel per axis, in any unit."""
    deep_supervision: bool

    @property
    def width(self) -> int:
        """Features at full resolution, of an encoder from scratch."""
        return int(self.encoder.rpartition("-")[2])


class Build(Protocol):
    """Makes a network, and a message for the user ("" when all is as asked)."""

    def __call__(
        self, channels: int, classes: int, arguments: Arguments, *, encoder: str, encoder_weights: str
    ) -> tuple[nn.Module, str]: ...


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One network that can be trained."""

    name: str
    label: str
    summary: str
    """One sentence, with its source."""
    dimensions: int
    """2 or 3."""
    encoders: list[str]
    """Those that it can use, the usual one first."""
    build: Build
    arguments: Callable[[Use], Arguments]
    """What it is built with."""
    multiple: Callable[[Arguments], tuple[int, ...]]
    """Per axis the number of pixels that an input's size must be a multiple of."""
    patch_multiple: int = 1
    """The sides of a 3D patch must be multiples of it, whatever the arguments."""
    minimum_size: int
    """Pixels per axis; a smaller input leaves nothing to pool at the bottom."""
    takes_any_size: bool = True
    """False: an input has the very size of the patch."""
    deep_supervision: bool = False
    """Whether coarser outputs can learn too."""
    learning_rate: Choice = (1e-3, "AdamW with warm-up and cosine decay learns well from 0.001.")
    suits_muon: bool = False
    """Whether it learns more in a step with Muon than with AdamW."""
