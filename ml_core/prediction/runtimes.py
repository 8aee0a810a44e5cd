"""What runs a trained network: PyTorch, or on the CPU the same network as an OpenVINO model, where that gives the same masks.

Either is a `Forward`, so that nobody else needs to know which one it is. The OpenVINO model is kept as bytes in the model package; it
is for every batch and image size, because for a size that comes again one dynamic model is as quick as one made for that size
(benchmarks/serving.py), and it need not be compiled again for each size of a batch of images.
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

if TYPE_CHECKING:
    from torch import Tensor, nn

Forward = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Normalised images (N, C, *spatial) float32 → logits (N, K, *spatial) float32, 2D or 3D. For one thread at a time."""

I = TypeVar("I")  # noqa: E741 (an image, in whatever form the predict functions take it)
MAX_DIFFERENCE = 0.001  # of Dice; below what a second training with another seed changes by a factor of ten
_SAME = 0.01  # of the largest logit: conversion rounds the weights to float16


class NotConvertibleError(MLError):
    """OpenVINO cannot run this network as PyTorch does."""


class TorchForward:
    """A network in PyTorch, on the GPU where there is one. precision: "bf16" (autocast) or "fp32"."""

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
    """A converted network on the CPU. Needs no PyTorch.

    precision: "bf16" is used where the CPU computes in it, else "fp32".
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
        # The result is copied: the request keeps its own for the next call.
        logits: NDArray[np.float32] = self._request.infer([np.ascontiguousarray(batch)], share_inputs=True)[0]
        return logits


def _openvino() -> ModuleType:
    """OpenVINO without its telemetry, which would report every import and conversion to its makers.

    An import of `openvino_telemetry` that fails makes OpenVINO use its own stand-in, which sends nothing.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # Python's way to say "cannot be imported"
    return importlib.import_module("openvino")


def convert(network: nn.Module, example: Tensor, *, any_size: bool = True) -> tuple[bytes, bytes]:
    """The network as an OpenVINO model: its XML, and its weights in float16. On the CPU, in eval mode afterwards.

    example: float32 (1, C, *spatial), as small as the network takes. any_size: the model takes every spatial size that the network
    takes; False: only the example's, for networks that are built for one (windows). It takes every batch size in both cases.
    Raises NotConvertibleError when OpenVINO does not know an operation, or its result is not PyTorch's.
    """
    import torch

    openvino = _openvino()
    network = network.float().cpu().eval()
    spatial = [-1] * (example.dim() - 2) if any_size else list(example.shape[2:])
    shape = openvino.PartialShape([-1, example.shape[1], *spatial])
    with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # the tracer's, about sizes; what they could spoil is checked below
        path = Path(folder) / "model.xml"
        try:
            openvino.save_model(openvino.convert_model(network, example_input=example, input=shape), path)
            xml, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
            _check(network, OpenVinoForward(xml, weights, "fp32"), example, any_size)
        except (RuntimeError, ValueError, TypeError) as error:  # OpenVINO's exceptions are RuntimeErrors
            reason = f"OpenVINO cannot run this network ({str(error).strip().splitlines()[-1]})."
            raise NotConvertibleError("not_convertible", reason, "It is used in PyTorch.") from error
    return xml, weights


def _check(network: nn.Module, converted: Forward, example: Tensor, any_size: bool) -> None:
    """Compare on a batch, and on a larger size: tracing can freeze what should follow the input. Raises ValueError."""
    import torch

    generator = torch.Generator().manual_seed(0)
    sizes = [example.shape[2:], [2 * example.shape[2], *example.shape[3:]]] if any_size else [example.shape[2:]]
    for size in sizes:
        images = torch.randn(2, example.shape[1], *size, generator=generator)
        expected, found = network(images).numpy(), converted(images.numpy())
        if found.shape != expected.shape or np.abs(found - expected).max() > _SAME * np.abs(expected).max():
            raise ValueError(f"its logits differ for images of {' x '.join(map(str, size))}")


@dataclass(frozen=True)
class Serving(Document):
    """What runs a model: the decision that goes into its package."""

    runtime: str
    """"openvino" or "torch"."""
    precision: str
    """"bf16" or "fp32"."""
    reason: str
    """A sentence for people."""
    dice_difference: Annotated[float | None, LeftOut] = None
    """The largest difference of a class's mean Dice from PyTorch in fp32; None where nothing was compared."""
    cases: Annotated[int | None, LeftOut] = None
    """On how many cases it was measured."""
    unit: Annotated[str | None, LeftOut] = None
    """What each of these cases is."""
    seconds: Annotated[dict[str, float] | None, LeftOut] = None
    """What one forward pass took in each runtime."""


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
    """Whether the model is served by `fast`, or by `exact` (PyTorch in fp32).

    fast, exact: an image to its label map of class positions. cases: validation images with their reference label maps (`unit`:
    what each of them is), each read once. The rule: per class, the mean Dice over the cases whose reference has the class may
    differ by less than MAX_DIFFERENCE.
    """
    scores: list[list[tuple[float, float]]] = [[] for _ in range(classes)]
    count = 0
    for image, reference in cases:
        count += 1
        found, expected = fast(image), exact(image)
        for index in np.unique(reference):
            truth = reference == index
            scores[index].append((_dice(truth, found == index), _dice(truth, expected == index)))
    if count == 0:
        return Serving("torch", "fp32", "There was no validation case to compare the converted network on.", cases=0)
    means = [np.mean(pairs, axis=0) for pairs in scores if pairs]
    difference = max(abs(float(ours - theirs)) for ours, theirs in means)
    over = f"one {unit}" if count == 1 else f"{count} {unit}s"
    report = f"its Dice differs by at most {difference:.5f} from PyTorch in fp32 on {over}"
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
