"""A training's plan as data: everything that it uses, and the machine that it was made for. Needs no torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ml_core.dataset.fingerprint import Fingerprint
from ml_core.documents import Document
from ml_core.networks.catalogue import find
from ml_core.planning.hyperparameters import specs

FLAT = 2.5  # a volume whose slices lie that many times further apart than its pixels is seen slice by slice


@dataclass(frozen=True)
class Machine:
    """Where the training runs. memory: bytes that a training may use, of the GPU where there is one."""

    cuda: bool
    cpus: int
    bf16: bool
    memory: int = 8 * 1024**3

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
    """How images are made ready; kept in the model package.

    channels: 1 or 3. normalisation: "ct" clips to [low, high] (in the image's own units) and scales by the dataset's mean and
    std; "image" clips each channel of each image to its 0.5 and 99.5 percentile and scales by its own mean and std. wide: the
    clipping alone is to the 0.001 and 99.999 percentile, for classes that are brighter or darker than nearly all of an image.
    without_air: these are of the values that are not the constant ground around a body, where there is one.
    slice_axis: the axis of a canonical (z, y, x) volume across which slices are taken. whole: a volume is one case of the
    network (3D) instead of many slices.
    spacing: what images are resampled to, in the network's axis order (slices first): mm, or pixels of the image's own where
    `unit` is "px"; None leaves images as they are. assumed_spacing: the spacing in mm of an image that has none.
    """

    channels: int
    normalisation: str
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 1.0
    slice_axis: int = 0
    whole: bool = False
    spacing: list[float] | None = None
    unit: str = "px"
    assumed_spacing: list[float] | None = None
    without_air: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Plan(Document):
    """Everything that a training uses. `epochs` None: as many as fit into `time_budget_seconds`; one of the two is set.

    configuration: "2d", "2.5d" or "3d". network: arguments of the architecture beside its encoder. patch_size: pixels in the
    plane; patch_depth: slices of a 3D patch, or slices that a 2.5D network sees at once. class_values: label values in the order
    of the network's outputs; class_weights: of the cross-entropy, in that order, empty for none. precision: "bf16" or "fp32".
    """

    configuration: str
    architecture: str
    encoder: str
    encoder_weights: str
    network: dict[str, Any]
    epochs: int | None
    time_budget_seconds: int | None
    learning_rate: float
    optimizer: str
    weight_decay: float
    warm_up_steps: int
    clip_norm: float
    weight_average: float
    deep_supervision: str
    batch_size: int
    patch_size: int
    patch_depth: int
    spacing: str
    normalisation: str
    foreground_share: float
    augmentation: str
    loss: str
    class_weights: str
    balanced_weights: list[float]
    seed: int
    seeds: int
    folds: int
    validation_fraction: float
    test_fraction: float
    early_stopping_patience: int
    test_time_augmentation: str
    postprocessing: str
    warm_start: str
    precision: str
    torch_compile: str
    preprocessing: Preprocessing
    class_values: list[int]
    class_names: list[str]
    class_colors: list[str]
    dimensions: int
    fingerprint: Fingerprint
    reasons: dict[str, str] = field(default_factory=dict)

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

    def hyperparameters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in specs()}
