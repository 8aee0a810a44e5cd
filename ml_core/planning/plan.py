"""A training's plan as data: everything that it uses, and the machine that it was made for. Needs no torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ml_core.dataset.fingerprint import Fingerprint
from ml_core.documents import Document
from ml_core.networks.architecture import Arguments
from ml_core.networks.catalogue import find
from ml_core.planning.hyperparameters import Hyperparameters

FLAT = 2.5  # a volume whose slices lie that many times further apart than its pixels is seen slice by slice


@dataclass(frozen=True)
class Machine(Document):
    """Where the training runs."""

    cuda: bool
    """Whether there is a GPU of NVIDIA."""
    cpus: int
    """Number of cores."""
    bf16: bool
    """Whether it multiplies quickly in bfloat16."""
    memory: int = 8 * 1024**3
    """Bytes that a training may use, of the GPU where there is one."""

    @classmethod
    def here(cls) -> Machine:
        import psutil
        import torch

        cuda = torch.cuda.is_available()
        bf16 = torch.cuda.is_bf16_supported() if cuda else torch.cpu._is_avx512_bf16_supported()
        memory = torch.cuda.mem_get_info()[0] if cuda else psutil.virtual_memory().available
        return cls(cuda=cuda, cpus=os.cpu_count() or 1, bf16=bf16, memory=int(memory))

    @classmethod
    def guess(cls) -> Machine:
        """The same as far as it can be told without torch: for a preview of a plan in a process that does not train."""
        import psutil

        cuda = shutil.which("nvidia-smi") is not None
        flags = Path("/proc/cpuinfo")
        bf16 = cuda or (flags.exists() and "avx512_bf16" in flags.read_text())
        return cls(cuda=cuda, cpus=os.cpu_count() or 1, bf16=bf16, memory=int(psutil.virtual_memory().available))


@dataclass(frozen=True)
class Preprocessing(Document):
    """How images are made ready (ml_core.cases.preprocessing); kept in the model package."""

    channels: int
    """1 or 3."""
    normalisation: str
    """ "ct" clips to [low, high] and scales by the dataset's mean and std; "image" clips each channel of each image to its 0.5 and
    99.5 percentile and scales by its own mean and standard deviation."""
    low: float = 0.0
    """In the images' own units, for "ct"."""
    high: float = 0.0
    mean: float = 0.0
    std: float = 1.0
    slice_axis: int = 0
    """The axis of a canonical (z, y, x) volume across which slices are taken."""
    whole: bool = False
    """Whether a volume is one case of the network (3D) instead of many slices."""
    spacing: list[float] | None = None
    """What images are resampled to, in the network's axis order (slices first); None leaves images as they are."""
    unit: str = "px"
    """Of `spacing`: "mm", or "px" for pixels of the image's own."""
    assumed_spacing: list[float] | None = None
    """mm per axis of an image that does not say its spacing."""
    without_air: bool = False
    """For "image": the values that scale an image are not those of the constant ground around a body, where there is one."""
    wide: bool = False
    """For "image": clips to the 0.001 and 99.999 percentile, for classes brighter or darker than nearly all of an image."""


@dataclass(frozen=True, kw_only=True)
class Plan(Hyperparameters):
    """Everything that a training uses: all hyperparameters, what follows from them, and why. One of `epochs` and
    `time_budget_seconds` is set at least."""

    reasons: dict[str, str]
    """Hyperparameter → why it has its value; "dimensions" → how volumes are cut into slices."""
    network: Arguments
    """Arguments of the architecture beside its encoder (ml_core.networks.catalogue.network_arguments)."""
    preprocessing: Preprocessing
    balanced_weights: list[float]
    """Of the classes in the cross-entropy; empty for equal ones."""
    class_values: list[int]
    """Label values in the order of the network's outputs, background first."""
    class_names: list[str]
    """In the same order."""
    class_colors: list[str]
    """#rrggbb in the same order."""
    dimensions: int
    """Of the images: 2 or 3."""
    fingerprint: Fingerprint
    """Of the dataset that it was made for."""

    @property
    def patch(self) -> tuple[int, ...]:
        """(H, W), or (D, H, W) for a 3D network."""
        plane = (self.patch_size, self.patch_size)
        return (self.patch_depth, *plane) if self.configuration == "3d" else plane

    @property
    def context(self) -> int:
        """Neighbouring slices on each side that a 2.5D network sees."""
        return self.patch_depth // 2 if self.configuration == "2.5d" else 0

    @property
    def is_anisotropic(self) -> bool:
        """Whether the slices of the network's grid lie far apart beside its pixels."""
        steps = self.preprocessing.spacing
        return steps is not None and len(steps) == 3 and steps[0] >= FLAT * min(steps)

    @property
    def in_channels(self) -> int:
        return self.preprocessing.channels * (2 * self.context + 1)

    def padded_shape(self, spatial: Sequence[int]) -> list[int]:
        """The least sizes, at least `spatial`, that the network can take."""
        architecture = find(self.architecture)
        multiple, least = architecture.multiple(self.network), architecture.minimum_size
        if self.configuration == "3d":
            least = min(least, *self.patch)
        return [
            -(-max(least, length) // step) * step
            for length, step in zip(spatial, multiple[-len(spatial) :], strict=True)
        ]

    def with_seed(self, seed: int) -> Plan:
        return replace(self, seed=seed)

    def continuing(self, kept: Plan) -> Plan:
        """The plan of an earlier attempt, so that its checkpoint fits, with what may change: how long, and what suits this machine."""
        return replace(
            kept,
            epochs=self.epochs,
            time_budget_seconds=self.time_budget_seconds,
            precision=self.precision,
            torch_compile=self.torch_compile,
        )
