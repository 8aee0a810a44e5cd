"""Prepares batches while the network trains on earlier ones, so that it does not wait for them."""

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

# Batches that are prepared ahead of the training step.
AHEAD = 2
# With this many threads or fewer, augmenting during a step slows the network more than augmenting between steps does.
FEW_THREADS = 2


class BatchLoader:
    """Prepares the batches of one training in a thread; use it as a context manager.

    The thread draws the patches. It also augments them on a CPU with many cores; with few cores or a GPU, `next`
    augments them on the device. The random numbers depend only on the seed and the step, so a resumed training gets the
    same batches.
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
                # The thread may be waiting for room in the queue.
                self._ready.get(timeout=0.1)
            except queue.Empty:
                continue

    def next(self) -> tuple[Tensor, Tensor]:
        """The batch of the next step, on the device: images float32 (B, C, *patch), channels last, and labels int64.

        Raises whatever exception the thread ended with.
        """
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
        # This limits only this thread. The other cores are left to the network.
        torch.set_num_threads(1)
        try:
            while not self._over.is_set():
                images, labels = self._sampler.batch(step)
                if self._beside:
                    images, labels = self._augment(images, labels, step)
                elif self._device.type != "cpu":
                    images, labels = images.pin_memory(), labels.pin_memory()
                self._ready.put((images, labels))
                step += 1
        # Any exception at all is handed to `next`; otherwise the training would wait forever.
        except BaseException as error:
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
