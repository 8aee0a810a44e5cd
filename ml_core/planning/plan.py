"""The plan of a training as data: everything that the training uses. Importing this module does not load torch."""

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

# A network sees a volume slice by slice if its slices lie this many times further apart than its pixels.
FLAT = 2.5


@dataclass(frozen=True)
class Machine(Document):
    """The machine that a training runs on."""

    cuda: bool
    """Whether there is an NVIDIA GPU."""
    cpus: int
    """Number of cores."""
    bf16: bool
    """Whether the machine computes quickly in bfloat16."""
    memory: int = 8 * 1024**3
    """Bytes that a training may use: of the GPU if there is one, otherwise of the machine."""

    @classmethod
    def here(cls) -> Machine:
        """Describe this machine. Loads torch."""
        import psutil
        import torch

        cuda = torch.cuda.is_available()
        bf16 = torch.cuda.is_bf16_supported() if cuda else torch.cpu._is_avx512_bf16_supported()
        memory = torch.cuda.mem_get_info()[0] if cuda else psutil.virtual_memory().available
        return cls(cuda=cuda, cpus=os.cpu_count() or 1, bf16=bf16, memory=int(memory))

    @classmethod
    def guess(cls) -> Machine:
        """Describe this machine without torch, for the preview of a plan in a process that does not train.

        `memory` is that of the machine even if there is a GPU.
        """
        import psutil

        cuda = shutil.which("nvidia-smi") is not None
        flags = Path("/proc/cpuinfo")
        bf16 = cuda or (flags.exists() and "avx512_bf16" in flags.read_text())
        return cls(cuda=cuda, cpus=os.cpu_count() or 1, bf16=bf16, memory=int(psutil.virtual_memory().available))


@dataclass(frozen=True)
class Preprocessing(Document):
    """How images are prepared for the network (ml_core.cases.preprocessing). The model package keeps it."""

    channels: int
    """1 or 3."""
    normalisation: str
    """The method: "ct" or "image".

    "ct" clips to [low, high] and scales by the dataset's mean and std. "image" clips each channel of an image to its
    0.5 and 99.5 percentile and scales it by its own mean and standard deviation.
    """
    low: float = 0.0
    """For "ct": the lower bound of clipping, in the images' own units, as are the next three."""
    high: float = 0.0
    """For "ct": the upper bound of clipping."""
    mean: float = 0.0
    """For "ct": subtracted after clipping."""
    std: float = 1.0
    """For "ct": divided by after subtracting the mean."""
    slice_axis: int = 0
    """The axis of a canonical (z, y, x) volume across which slices are taken."""
    whole: bool = False
    """Whether the network takes a volume as a whole (3D) instead of slice by slice."""
    spacing: list[float] | None = None
    """The spacing that images are resampled to, in the network's order of axes (slices first); None to not resample."""
    unit: str = "px"
    """The unit of `spacing`: "mm", or "px" for the image's own pixels."""
    assumed_spacing: list[float] | None = None
    """The spacing in mm per axis that an image without a spacing is taken to have."""
    without_air: bool = False
    """For "image": the constant ground around a body, if there is one, does not enter the image's statistics."""
    wide: bool = False
    """For "image": clips to the 0.001 and 99.999 percentile, as a class is brighter or darker than nearly all else."""


@dataclass(frozen=True, kw_only=True)
class Plan(Hyperparameters):
    """Everything that a training uses: all hyperparameters, the reasons for them, and what follows from them.

    At least one of `epochs` and `time_budget_seconds` is set.
    """

    reasons: dict[str, str]
    """Hyperparameter → why it has its value; "dimensions" → how volumes are cut into slices."""
    network: Arguments
    """Arguments of the architecture other than its encoder (ml_core.networks.catalogue.network_arguments)."""
    preprocessing: Preprocessing
    balanced_weights: list[float]
    """Weights of the classes in the cross-entropy, in the order of `class_values`; empty if all are equal."""
    class_values: list[int]
    """Label values in the order of the network's outputs, background first."""
    class_names: list[str]
    """Names in the order of `class_values`."""
    class_colors: list[str]
    """Colours (#rrggbb) in the order of `class_values`."""
    dimensions: int
    """Dimensions of the images: 2 or 3."""
    fingerprint: Fingerprint
    """The fingerprint of the dataset that the plan was made for."""

    @property
    def patch(self) -> tuple[int, ...]:
        """Size of a training patch in pixels: (H, W), or (D, H, W) for a 3D network."""
        plane = (self.patch_size, self.patch_size)
        return (self.patch_depth, *plane) if self.configuration == "3d" else plane

    @property
    def context(self) -> int:
        """Number of neighbouring slices on each side that a 2.5D network sees; 0 for other networks."""
        return self.patch_depth // 2 if self.configuration == "2.5d" else 0

    @property
    def is_anisotropic(self) -> bool:
        """Whether the slices of the network's grid lie at least FLAT times further apart than its pixels."""
        steps = self.preprocessing.spacing
        return steps is not None and len(steps) == 3 and steps[0] >= FLAT * min(steps)

    @property
    def in_channels(self) -> int:
        """Channels of the network's input: those of the image, for each slice that it sees at once."""
        return self.preprocessing.channels * (2 * self.context + 1)

    def padded_shape(self, spatial: Sequence[int]) -> list[int]:
        """Return the smallest spatial shape that holds `spatial` and that the network can take."""
        architecture = find(self.architecture)
        multiple, minimum = architecture.multiple(self.network), architecture.minimum_size
        if self.configuration == "3d":
            minimum = min(minimum, *self.patch)
        return [
            -(-max(minimum, length) // step) * step
            for length, step in zip(spatial, multiple[-len(spatial) :], strict=True)
        ]

    def with_seed(self, seed: int) -> Plan:
        """Return this plan with another seed."""
        return replace(self, seed=seed)

    def continuing(self, kept: Plan) -> Plan:
        """Return the plan `kept` of an earlier attempt, to continue it on this machine from its checkpoint.

        The duration, the precision and compiling come from this plan, because the checkpoint does not depend on them.
        """
        return replace(
            kept,
            epochs=self.epochs,
            time_budget_seconds=self.time_budget_seconds,
            precision=self.precision,
            torch_compile=self.torch_compile,
        )
