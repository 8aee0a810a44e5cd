"""The runtimes of a trained network: PyTorch, or OpenVINO on a CPU if it gives the same masks.

Both are a `Forward`, so callers need not know which one they have. The model package holds the OpenVINO model as bytes.
One model serves every batch and image size: it is as quick as one made for a single size (benchmarks/serving.py), and
it is compiled only once.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, TypeVar

import numpy as np
from numpy.typing import NDArray

from ml_core.documents import Document, LeftOut
from ml_core.errors import MLError
from ml_core.measures.metrics import without_ignored

if TYPE_CHECKING:
    from torch import Tensor, nn

Forward = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Normalised images (N, C, *spatial) float32 → logits (N, K, *spatial) float32, 2D or 3D. For one thread at a time."""

I = TypeVar("I")  # noqa: E741 (an image, in whatever form the predict functions take it)
# The Dice of a quicker runtime may differ by less than this. Training with another seed changes Dice ten times as much.
MAX_DIFFERENCE = 0.001
# Logits may differ by this share of the largest one, because conversion rounds the weights to float16.
_SAME = 0.01


class NotConvertibleError(MLError):
    """OpenVINO cannot run a network, or its result differs from PyTorch's."""


class TorchForward:
    """Runs a network in PyTorch, on the GPU if there is one. precision: "bf16" (autocast) or "fp32"."""

    def __init__(self, network: nn.Module, precision: str) -> None:
        import torch

        self._torch = torch
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = precision
        self.network = network.to(self.device).eval()
        for dimensions, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            for tensor in (*self.network.parameters(), *self.network.buffers()):
                if tensor.dim() == dimensions:
                    tensor.data = tensor.data.contiguous(memory_format=layout)

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        torch = self._torch
        layout = torch.channels_last if batch.ndim == 4 else torch.channels_last_3d
        images = torch.from_numpy(batch).to(self.device).contiguous(memory_format=layout)
        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")
        with torch.inference_mode(), autocast:
            logits: NDArray[np.float32] = self.network(images).float().contiguous().cpu().numpy()
        return logits


class OpenVinoForward:
    """Runs a converted network on the CPU, without PyTorch.

    precision: "bf16" or "fp32"; a CPU that does not compute in bf16 uses fp32.
    """

    def __init__(self, xml: bytes, weights: bytes, precision: str) -> None:
        openvino = _openvino()
        core = openvino.Core()
        can = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = "bf16" if precision == "bf16" and "BF16" in can else "fp32"
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": self.precision.replace("fp", "f")}
        compiled = core.compile_model(core.read_model(model=xml, weights=weights), "CPU", settings)
        self._request = compiled.create_infer_request()

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        # OpenVINO returns a copy of the result, so the next call cannot overwrite it.
        logits: NDArray[np.float32] = self._request.infer([np.ascontiguousarray(batch)], share_inputs=True)[0]
        return logits


def _openvino() -> ModuleType:
    """Import OpenVINO without its telemetry, which would report every import and conversion to its makers.

    If `openvino_telemetry` cannot be imported, OpenVINO uses a stand-in of its own that sends nothing.
    """
    # None in sys.modules makes an import fail.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    return importlib.import_module("openvino")


def convert(network: nn.Module, example: Tensor, *, any_size: bool = True) -> tuple[bytes, bytes]:
    """Convert a network to an OpenVINO model: its XML, and its weights in float16.

    The network is moved to the CPU and to evaluation mode. example: float32 (1, C, *spatial), as small as the network
    accepts. any_size: whether the model accepts every spatial size that the network does, or only the example's (for
    networks built for one size). It accepts every batch size in either case.
    Raises NotConvertibleError if OpenVINO does not know an operation, or if its result differs from PyTorch's.
    """
    import torch

    openvino = _openvino()
    network = network.float().cpu().eval()
    spatial = [-1] * (example.dim() - 2) if any_size else list(example.shape[2:])
    shape = openvino.PartialShape([-1, example.shape[1], *spatial])
    with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        # The tracer warns of sizes that it may have frozen. `_check` finds out whether it has.
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.xml"
        try:
            openvino.save_model(openvino.convert_model(network, example_input=example, input=shape), path)
            xml, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
            _check(network, OpenVinoForward(xml, weights, "fp32"), example, any_size)
        # OpenVINO's exceptions are RuntimeErrors.
        except (RuntimeError, ValueError, TypeError) as error:
            reason = f"OpenVINO cannot run this network ({str(error).strip().splitlines()[-1]})."
            raise NotConvertibleError("not_convertible", reason, "It is used in PyTorch.") from error
    return xml, weights


def _check(network: nn.Module, converted: Forward, example: Tensor, any_size: bool) -> None:
    """Compare the logits for a batch, and for a larger image if `any_size`. Raises ValueError if they differ.

    Tracing can freeze sizes that should follow the input, which the example alone would not show.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    sizes = [example.shape[2:], [2 * example.shape[2], *example.shape[3:]]] if any_size else [example.shape[2:]]
    for size in sizes:
        images = torch.randn(2, example.shape[1], *size, generator=generator)
        expected, actual = network(images).numpy(), converted(images.numpy())
        if actual.shape != expected.shape or np.abs(actual - expected).max() > _SAME * np.abs(expected).max():
            raise ValueError(f"its logits differ for images of {' x '.join(map(str, size))}")


@dataclass(frozen=True)
class Serving(Document):
    """The decision which runtime runs a model, and in which precision."""

    runtime: str
    """"openvino" or "torch"."""
    precision: str
    """"bf16" or "fp32"."""
    reason: str
    """A sentence for people."""
    dice_difference: Annotated[float | None, LeftOut] = None
    """The largest difference of a class's mean Dice from PyTorch in fp32; None if nothing was compared."""
    cases: Annotated[int | None, LeftOut] = None
    """The number of cases that were compared."""
    unit: Annotated[str | None, LeftOut] = None
    """What each of these cases is, such as "validation case"."""
    seconds: Annotated[dict[str, float] | None, LeftOut] = None
    """Name of each runtime → seconds of one forward pass."""


def choose(
    fast: Callable[[I], NDArray[np.uint8]],
    exact: Callable[[I], NDArray[np.uint8]],
    cases: Iterable[tuple[I, NDArray[np.uint8]]],
    classes: int,
    *,
    runtime: str = "openvino",
    precision: str = "bf16",
    unit: str = "validation case",
) -> Serving:
    """Decide whether a model is served by `fast`, or by `exact` (PyTorch in fp32).

    `fast` is used if, for every class, the mean Dice over the cases whose reference has the class differs by less than
    MAX_DIFFERENCE. fast, exact: functions from an image to its label map of class positions. cases: validation images
    with their reference label maps, each read once. runtime, precision: those of `fast`. unit: what each case is.
    """
    scores: list[list[tuple[float, float]]] = [[] for _ in range(classes)]
    count = 0
    for image, reference in cases:
        count += 1
        truths, actual = without_ignored(reference, fast(image))
        _, expected = without_ignored(reference, exact(image))
        for index in np.unique(truths):
            truth = truths == index
            scores[index].append((_dice(truth, actual == index), _dice(truth, expected == index)))
    if count == 0:
        return Serving("torch", "fp32", "There was no validation case to compare the converted network on.", cases=0)
    means = [np.mean(pairs, axis=0) for pairs in scores if pairs]
    difference = max(abs(float(ours - theirs)) for ours, theirs in means)
    compared = f"one {unit}" if count == 1 else f"{count} {unit}s"
    report = f"its Dice differs by at most {difference:.5f} from PyTorch in fp32 on {compared}"
    if difference < MAX_DIFFERENCE:
        names = {"openvino": "OpenVINO", "torch": "PyTorch"}
        reason = f"{names[runtime]} in {precision}: {report}."
        return Serving(runtime, precision, reason, difference, count, unit)
    reason = f"PyTorch in fp32: the quicker way was refused, {report}."
    return Serving("torch", "fp32", reason, difference, count, unit)


def _dice(reference: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> float:
    tp = int(np.count_nonzero(reference & prediction))
    false = int(np.count_nonzero(reference ^ prediction))
    return 2 * tp / (2 * tp + false)
