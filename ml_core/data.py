"""Training data: every case is decoded and normalised once into memory-mapped files, and patches are drawn from those.

Memory stays small however large the dataset is: the operating system keeps what is used and drops the rest.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml_core.ahead import in_order, threads_for
from ml_core.errors import ImageError, TrainingError
from ml_core.io import read_image, read_mask
from ml_core.plan import Plan
from ml_core.preprocessing import labels_to_network, preprocess

VERSION = 2  # of what `_decode` writes: raise it where the same file and plan give other arrays
PIXELS_KEPT = 2_000  # places remembered per class and case to centre patches on
PLACES_IN_MEMORY = 1_000_000  # per class; of many cases each keeps fewer
MAPPED_BYTES, MAPPED_CASES = 128 * 2**20, 64


@dataclass(frozen=True)
class Case:
    """One image and its mask on disk. `key` names their content, the image's before a space and the mask's after it (such as both
    checksums), so that caches can rely on it."""

    id: int
    name: str
    image: Path
    mask: Path
    group: str = ""
    key: str = ""

    @property
    def mark(self) -> str:
        """The same for the same image under another id: in another version of a dataset, in another dataset, with a corrected mask."""
        return hashlib.sha256((self.key.partition(" ")[0] or str(self.image.resolve())).encode()).hexdigest()[:16]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Case:
        return cls(**{**values, "image": Path(values["image"]), "mask": Path(values["mask"])})


@dataclass(frozen=True)
class StoredCase:
    """A case on the network's grid, on disk. Arrays are mapped when they are asked for and forgotten when they are dropped,
    so that the memory of a training does not grow with the dataset.

    images: float16 (N, C, H, W) or (1, C, D, H, W); labels: uint8 (N, H, W) or (1, D, H, W), positions in the plan's
    class_values. places: class index → int32 (K, 3 or 4) of (slice, row, column) or (0, slice, row, column) where the class is.
    """

    stem: Path
    shape: tuple[int, ...]
    places: dict[int, NDArray[np.int32]]

    @property
    def images(self) -> NDArray[np.float16]:
        mapped: NDArray[np.float16] = np.load(self.stem.with_suffix(".images.npy"), mmap_mode="r")
        return mapped

    @property
    def labels(self) -> NDArray[np.uint8]:
        mapped: NDArray[np.uint8] = np.load(self.stem.with_suffix(".labels.npy"), mmap_mode="r")
        return mapped


def label_indices(values: NDArray[Any], class_values: list[int], name: str) -> NDArray[np.uint8]:
    """Label values → positions in `class_values` (ascending). Raises TrainingError for a value that is no class."""
    known = np.asarray(class_values)
    indices = np.clip(np.searchsorted(known, values), 0, len(known) - 1)
    if not np.array_equal(known[indices], values):
        strange = np.setdiff1d(np.unique(values), known)[:5].tolist()
        raise TrainingError(
            "unknown_label",
            f"The mask of {name} has values that are no class: {strange}.",
            "Code all masks in the same way.",
        )
    return indices.astype(np.uint8)


def spread_order(count: int) -> list[int]:
    """0 to count - 1 in an order of which every beginning is spread evenly."""
    return [int(index) for index in np.argsort([index * 0.618034 % 1 for index in range(count)])]


def open_store(
    folder: Path,
    cases: list[Case],
    plan: Plan,
    on_case: Callable[[int, int], None],
    *,
    until: float | None = None,
    least: int = 1,
) -> list[StoredCase]:
    """Decode what is not in `folder` yet, and open all. `on_case(done, total)` is called after each case.

    With `until` (time.monotonic) no case is waited for after it, once `least` are there: the first ones of `cases` come back.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def open_one(case: Case) -> StoredCase:
        stem = stored_stem(folder, case, plan)
        if not stem.with_suffix(".places.npy").exists():
            _decode(case, plan, stem)
        return _load(stem, PLACES_IN_MEMORY // len(cases))

    stored: list[StoredCase] = []
    with closing(in_order(open_one, cases, threads_for(case.image for case in cases))) as opened:
        for case in opened:
            stored.append(case)
            on_case(len(stored), len(cases))
            if until is not None and len(stored) >= least and time.monotonic() > until:
                break
    return stored


def stored_stem(folder: Path, case: Case, plan: Plan) -> Path:
    """Where a decoded case lies: its name says its content and how it was made ready."""
    content = [VERSION, case.key or str(case.image.resolve()), plan.preprocessing.to_dict(), plan.class_values]
    return folder / hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _decode(case: Case, plan: Plan, stem: Path) -> None:
    try:
        image = read_image(case.image)
        mask = read_mask(case.mask, like=image)
    except ImageError as error:
        raise TrainingError(error.code, f"{case.name}: {error.reason}", error.cure) from error
    indices = label_indices(mask.values, plan.class_values, case.name)
    labels = labels_to_network(indices, image, plan.preprocessing)
    _save(stem.with_suffix(".images.npy"), preprocess(image, plan.preprocessing).astype(np.float16))
    _save(stem.with_suffix(".labels.npy"), labels)
    # The places go last: their file says that the other two are whole.
    _save(stem.with_suffix(".places.npy"), _places(labels, len(plan.class_values)))


def _places(labels: NDArray[np.uint8], classes: int) -> NDArray[np.int32]:
    """Rows of class and index in `labels`."""
    rng = np.random.default_rng(0)
    rows = [np.zeros((0, 1 + labels.ndim), np.int32)]
    for index in range(classes):
        found = np.flatnonzero(labels == index)
        if found.size > PIXELS_KEPT:
            found = rng.choice(found, PIXELS_KEPT, replace=False)
        places = np.stack(np.unravel_index(found, labels.shape), axis=1)
        rows.append(np.concatenate([np.full((len(places), 1), index), places], axis=1).astype(np.int32))
    return np.concatenate(rows)


def _save(path: Path, array: NDArray[Any]) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as out:
        np.save(out, array)
    os.replace(part, path)


def _load(stem: Path, most_places: int) -> StoredCase:
    rows = np.load(stem.with_suffix(".places.npy"))
    shape = np.load(stem.with_suffix(".labels.npy"), mmap_mode="r").shape
    places = {}
    for index in np.unique(rows[:, 0]):
        found = rows[rows[:, 0] == index, 1:]
        places[int(index)] = found[:: -(-len(found) // max(1, most_places))].copy()  # without a hold on the others
    return StoredCase(stem, shape, places)


class _MappedCases:
    """The cases used last, still mapped: mapping one takes longer than cutting a patch. Only some, since mapped files count as memory
    and each keeps a file open."""

    def __init__(self) -> None:
        self._arrays: OrderedDict[Path, tuple[NDArray[np.float16], NDArray[np.uint8]]] = OrderedDict()
        self._bytes = 0

    def of(self, case: StoredCase) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        if case.stem not in self._arrays:
            self._arrays[case.stem] = (case.images, case.labels)
            self._bytes += sum(array.nbytes for array in self._arrays[case.stem])
        self._arrays.move_to_end(case.stem)
        while len(self._arrays) > 1 and (self._bytes > MAPPED_BYTES or len(self._arrays) > MAPPED_CASES):
            _, oldest = self._arrays.popitem(last=False)
            self._bytes -= sum(array.nbytes for array in oldest)
        return self._arrays[case.stem]


class PatchSampler:
    """Draws batches of patches. Cases are drawn evenly; a share of the patches is placed on a class, in a case that has it.

    Classes of equally many cases are drawn evenly. One of few cases comes less often, by the root of their number: often enough to
    be learnt, and not so often that the few are learnt by heart.

    The numbers of a step come from the seed and the step alone, so that a training that goes on draws what it would have drawn.
    """

    def __init__(self, cases: list[StoredCase], plan: Plan) -> None:
        self.cases, self.plan = cases, plan
        self.patch, self.context = plan.patch, plan.context
        self._mapped = _MappedCases()
        self._having: dict[int, list[StoredCase]] = {}
        for case in cases:
            for index in case.places:
                self._having.setdefault(index, []).append(case)
        self._classes = sorted(self._having)
        weights = np.sqrt([len(self._having[index]) for index in self._classes])
        self._chances = weights / weights.sum()

    def units(self) -> int:
        """How many patches it takes to see every pixel about once."""
        return sum(
            max(1, round(math.prod(case.shape) / math.prod(self.patch)))
            if len(self.patch) == 3
            else case.shape[0] * max(1, round(math.prod(case.shape[1:]) / math.prod(self.patch)))
            for case in self.cases
        )

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images float32 (B, C, *patch) and class positions uint8 (B, *patch)."""
        rng = np.random.default_rng([self.plan.seed, step])
        drawn = [self.draw(rng) for _ in range(self.plan.batch_size)]
        images, labels = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*drawn, strict=True))
        return images.float(), labels

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        """One patch: (C, *patch) and (*patch)."""
        on_a_class = rng.random() < self.plan.foreground_share
        chosen = int(rng.choice(self._classes, p=self._chances)) if on_a_class else 0
        cases = self._having[chosen] if on_a_class else self.cases
        case = cases[rng.integers(len(cases))]
        spatial = case.shape[1:]
        if on_a_class:
            places = case.places[chosen]
            index, *place = (int(item) for item in places[rng.integers(len(places))])
            # Anywhere that keeps the place inside the patch, not always its middle.
            corner = [
                spot - int(rng.integers(size // 4, max(size // 4 + 1, 3 * size // 4)))
                for spot, size in zip(place, self.patch, strict=True)
            ]
        else:
            index = int(rng.integers(case.shape[0]))
            corner = [
                int(rng.integers(max(1, length - size + 1))) for length, size in zip(spatial, self.patch, strict=True)
            ]
        corner = [
            min(max(0, low), max(0, length - size))
            for low, length, size in zip(corner, spatial, self.patch, strict=True)
        ]
        return self.cut(case, index, corner)

    def cut(self, case: StoredCase, index: int, corner: Sequence[int]) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        """The patch of slice or volume `index` that begins at `corner`."""
        window = tuple(slice(low, low + size) for low, size in zip(corner, self.patch, strict=True))
        images, labels = self._mapped.of(case)
        cut = with_neighbours(images, index, self.context, window)
        return pad_to(cut, self.patch), pad_to(labels[index][window], self.patch)


def with_neighbours(images: NDArray[Any], index: int, context: int, window: tuple[slice, ...] = ()) -> NDArray[Any]:
    """Slice `index` of (N, C, …) with `context` neighbours on each side as channels: ((2 * context + 1) * C, …).

    Beyond the ends the last slice is repeated.
    """
    cut = (slice(None), *window)
    if not context:
        return np.asarray(images[index][cut])
    around = [min(max(0, index + step), len(images) - 1) for step in range(-context, context + 1)]
    return np.concatenate([images[item][cut] for item in around])


def pad_to(array: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Pad the last axes at their ends to at least `shape`, mirroring what is there."""
    missing = [max(0, size - length) for size, length in zip(shape, array.shape[-len(shape) :], strict=True)]
    if not any(missing):
        return array
    return np.pad(array, [(0, 0)] * (array.ndim - len(shape)) + [(0, gap) for gap in missing], mode="symmetric")
