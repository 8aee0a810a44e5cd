"""Batches made ready beside the training step, so that the network never waits for them."""

from __future__ import annotations

import queue
import threading
from types import TracebackType

import torch
from torch import Tensor

from ml_core.cases.patches import PatchSampler
from ml_core.networks.device import memory_layout
from ml_core.planning.plan import Plan
from ml_core.training.augmentation import PRESETS, augment

AHEAD = 2  # batches
FEW_THREADS = 2  # beside so few, changing a batch takes one from the network for longer than the network would take to do it between steps


class BatchLoader:
    """`next()` gives the batch of the next step: images (B, C, *patch) float32 channels-last and labels int64, on the device.

    A thread draws and, on a CPU of many cores, augments; who has few, or a GPU, augments between its steps. Each step has random numbers
    of its own.
    """

    def __init__(self, sampler: PatchSampler, plan: Plan, device: torch.device, *, first_step: int) -> None:
        self._sampler, self._plan, self._device, self._step = sampler, plan, device, first_step
        self._beside = device.type == "cpu" and torch.get_num_threads() > FEW_THREADS
        self._ready: queue.Queue[tuple[Tensor, Tensor] | BaseException] = queue.Queue(AHEAD)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(first_step,), daemon=True)

    def __enter__(self) -> BatchLoader:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.1)  # it may wait for a place
            except queue.Empty:
                continue

    def next(self) -> tuple[Tensor, Tensor]:
        batch = self._ready.get()
        if isinstance(batch, BaseException):
            raise batch
        images, labels = batch
        if not self._beside:
            images, labels = self._augment(
                images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True), self._step
            )
        self._step += 1
        return images, labels

    def _work(self, step: int) -> None:
        torch.set_num_threads(1)  # of this thread: the other cores belong to the network
        try:
            while not self._over.is_set():
                images, labels = self._sampler.batch(step)
                if self._beside:
                    images, labels = self._augment(images, labels, step)
                elif self._device.type != "cpu":
                    images, labels = images.pin_memory(), labels.pin_memory()
                self._ready.put((images, labels))
                step += 1
        except BaseException as error:  # whatever it is, the training has to end with it
            self._ready.put(error)

    def _augment(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self._plan.seed * 1_000_003 + step)
        images, labels = augment(
            images,
            labels,
            PRESETS[self._plan.augmentation],
            generator,
            modality=self._plan.fingerprint.modality,
            anisotropic=self._plan.is_anisotropic,
        )
        return images.contiguous(memory_format=memory_layout(images.ndim - 2)), labels.long()
