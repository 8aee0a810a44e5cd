"""The type of an entry in the catalogue of networks, and the types that it uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import nn

Arguments = dict[str, Any]
"""The arguments of a network's constructor, other than encoder, channels and classes. A plan stores them as JSON."""
Choice = tuple[float, str]
"""A planned value, and the reason for it."""


@dataclass(frozen=True)
class Use:
    """The facts that the arguments of a network depend on."""

    encoder: str
    patch: tuple[int, ...]
    """Pixels per axis of a training patch."""
    spacing: tuple[float, ...]
    """Size of a pixel per axis, in any unit."""
    deep_supervision: bool
    """Coarser outputs are trained too."""

    @property
    def width(self) -> int:
        """Features at full resolution, with which the name of a from-scratch encoder ends: 16 for "plain-16"."""
        return int(self.encoder.rpartition("-")[2])


class Build(Protocol):
    """Builds a network. Returns it with a message for the user, which is "" if everything is as requested."""

    def __call__(
        self, channels: int, classes: int, arguments: Arguments, *, encoder: str, encoder_weights: str
    ) -> tuple[nn.Module, str]: ...


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One network that can be trained."""

    name: str
    label: str
    summary: str
    """One sentence for the user, with the paper's first author and year."""
    dimensions: int
    """2 or 3."""
    encoders: list[str]
    """The encoders that it can use, the usual one first."""
    build: Build
    """Builds the network."""
    arguments: Callable[[Use], Arguments]
    """Computes the arguments of `build`."""
    multiple: Callable[[Arguments], tuple[int, ...]]
    """Returns, per axis, the number of pixels that the size of an input must be a multiple of."""
    patch_multiple: int = 1
    """The sides of a 3D patch must be multiples of this, whatever the arguments."""
    minimum_size: int
    """Least pixels per axis of an input; of a smaller one nothing is left to pool at the coarsest stage."""
    takes_any_size: bool = True
    """Whether inputs may have any size; if not, they must have exactly the size of the patch."""
    deep_supervision: bool = False
    """Whether its coarser outputs can be trained too."""
    learning_rate: Choice = (1e-3, "AdamW with warm-up and cosine decay learns well from 0.001.")
    """The planned learning rate, and the reason for it."""
    suits_muon: bool = False
    """Whether a step of Muon teaches it more than a step of AdamW."""
