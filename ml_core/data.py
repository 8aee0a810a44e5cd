"""Training data: every case is decoded and normalised once into memory-mapped files, and patches are drawn from those.

Memory stays small however large the dataset is: the operating system keeps what is used and drops the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_core.errors import ImageError, TrainingError
from ml_core.io import read_image, read_mask
from ml_core.planning import Plan
from ml_core.preprocessing import labels_to_slices, preprocess

FOREGROUND_SHARE = 1 / 3  # of the patches are centred on a pixel of a class drawn at random
PIXELS_KEPT = 2_000  # places remembered per class and case to centre patches on


@dataclass(frozen=True)
class Case:
    """One image and its mask on disk. `key` names their content (such as both checksums), so that caches can rely on it."""

    id: int
    name: str
    image: Path
    mask: Path
    group: str = ""
    key: str = ""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Case:
        return cls(**{**values, "image": Path(values["image"]), "mask": Path(values["mask"])})


@dataclass(frozen=True)
class StoredCase:
    """images: float16 (N, C, H, W); labels: uint8 (N, H, W), positions in the plan's class_values; both memory-mapped.

    places: class index → int32 (K, 3) of (slice, row, column) where the class is.
    """

    images: NDArray[np.float16]
    labels: NDArray[np.uint8]
    places: dict[int, NDArray[np.int32]]


def label_indices(values: NDArray[Any], class_values: list[int], name: str) -> NDArray[np.uint8]:
    """Label values → positions in `class_values` (ascending). Raises TrainingError for a value that is no class."""
    known = np.asarray(class_values)
    indices = np.clip(np.searchsorted(known, values), 0, len(known) - 1)
    if not np.array_equal(known[indices], values):
        strange = np.setdiff1d(np.unique(values), known)[:5].tolist()
        raise TrainingError(
            "unknown_label",
            f"The mask of {name} has values that are no class: {strange}.",
            "Upload the dataset again.",
        )
    return indices.astype(np.uint8)


def open_store(folder: Path, cases: list[Case], plan: Plan, on_case: Callable[[int, int], None]) -> list[StoredCase]:
    """Decode what is not in `folder` yet and map everything. `on_case(done, total)` is called after each case."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = []
    for position, case in enumerate(cases):
        recipe = json.dumps(
            [case.key or str(case.image.resolve()), plan.preprocessing.to_dict(), plan.class_values],
            sort_keys=True,
        )
        stem = folder / hashlib.sha256(recipe.encode()).hexdigest()[:32]
        if not stem.with_suffix(".places.npy").exists():
            _decode(case, plan, stem)
        stored.append(_load(stem))
        on_case(position + 1, len(cases))
    return stored


def _decode(case: Case, plan: Plan, stem: Path) -> None:
    try:
        image = read_image(case.image)
        mask = read_mask(case.mask, like=image)
    except ImageError as error:
        raise TrainingError(error.code, f"{case.name}: {error.reason}", error.cure) from error
    indices = label_indices(mask.values, plan.class_values, case.name)
    labels = labels_to_slices(indices, image, plan.preprocessing.slice_axis)
    _save(stem.with_suffix(".images.npy"), preprocess(image, plan.preprocessing).astype(np.float16))
    _save(stem.with_suffix(".labels.npy"), np.ascontiguousarray(labels))
    # The places go last: their file says that the other two are whole.
    _save(stem.with_suffix(".places.npy"), _places(labels, len(plan.class_values)))


def _places(labels: NDArray[np.uint8], classes: int) -> NDArray[np.int32]:
    """(K, 4) rows of class, slice, row, column."""
    rng = np.random.default_rng(0)
    rows = [np.zeros((0, 4), np.int32)]
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


def _load(stem: Path) -> StoredCase:
    places = np.load(stem.with_suffix(".places.npy"))
    return StoredCase(
        images=np.load(stem.with_suffix(".images.npy"), mmap_mode="r"),
        labels=np.load(stem.with_suffix(".labels.npy"), mmap_mode="r"),
        places={int(index): places[places[:, 0] == index, 1:] for index in np.unique(places[:, 0])},
    )


class PatchSampler:
    """Draws batches of patches. Cases are drawn evenly; a third of the patches are centred on a class drawn evenly."""

    def __init__(self, cases: list[StoredCase], plan: Plan, rng: np.random.Generator) -> None:
        self.cases = cases
        self.size = plan.patch_size
        self.batch_size = plan.batch_size
        self.rng = rng

    def units(self) -> int:
        """How many patches it takes to see every pixel about once."""
        return sum(
            len(case.labels) * max(1, round(case.labels.shape[1] * case.labels.shape[2] / self.size**2))
            for case in self.cases
        )

    def batch(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Images float32 (B, C, P, P) and class positions int64 (B, P, P)."""
        drawn = [self._patch() for _ in range(self.batch_size)]
        images = np.stack([image for image, _ in drawn]).astype(np.float32)
        return images, np.stack([labels for _, labels in drawn]).astype(np.int64)

    def _patch(self) -> tuple[NDArray[Any], NDArray[Any]]:
        case = self.cases[self.rng.integers(len(self.cases))]
        height, width = case.labels.shape[1:]
        if self.rng.random() < FOREGROUND_SHARE:
            places = case.places[int(self.rng.choice(list(case.places)))]
            index, row, column = (int(item) for item in places[self.rng.integers(len(places))])
            # Anywhere that keeps the place inside the patch, not always its middle.
            row -= int(self.rng.integers(self.size // 4, 3 * self.size // 4))
            column -= int(self.rng.integers(self.size // 4, 3 * self.size // 4))
        else:
            index = int(self.rng.integers(len(case.labels)))
            row = int(self.rng.integers(max(1, height - self.size + 1)))
            column = int(self.rng.integers(max(1, width - self.size + 1)))
        row = min(max(0, row), max(0, height - self.size))
        column = min(max(0, column), max(0, width - self.size))
        window = (slice(row, row + self.size), slice(column, column + self.size))
        return (
            pad_to(case.images[index][(slice(None), *window)], self.size),
            pad_to(case.labels[index][window], self.size),
        )


def pad_to(array: NDArray[Any], size: int) -> NDArray[Any]:
    """Pad the last two axes at their ends to at least `size`, mirroring what is there."""
    missing = [(0, 0)] * (array.ndim - 2) + [(0, max(0, size - length)) for length in array.shape[-2:]]
    return np.pad(array, missing, mode="symmetric") if any(after for _, after in missing) else array
