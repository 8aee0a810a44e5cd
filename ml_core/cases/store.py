"""Training data: every case is decoded and normalised once into memory-mapped files.

Memory stays small however large the dataset is: the operating system keeps what is used and drops the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_core.cases.preprocessing import labels_to_network, preprocess
from ml_core.dataset.case import Case
from ml_core.errors import ImageError, TrainingError
from ml_core.files import in_order, threads_for
from ml_core.io import read_image, read_mask
from ml_core.planning.budget import NO_DEADLINE, Deadline
from ml_core.planning.plan import Plan

VERSION = 2  # of what `_decode` writes: raise it where the same file and plan give other arrays
PIXELS_KEPT = 2_000  # places remembered per class and case to centre patches on
PLACES_IN_MEMORY = 1_000_000  # per class; of many cases each keeps fewer


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


def open_store(
    folder: Path,
    cases: list[Case],
    plan: Plan,
    on_case: Callable[[int, int], None],
    *,
    deadline: Deadline = NO_DEADLINE,
    least: int = 1,
) -> list[StoredCase]:
    """Decode what is not in `folder` yet, and open all. `on_case(done, total)` is called after each case.

    With a deadline no case is waited for after it, once `least` are there: the first ones of `cases` come back.
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
            if len(stored) >= least and deadline.is_over():
                break
    return stored


def stored_stem(folder: Path, case: Case, plan: Plan) -> Path:
    """Where a decoded case lies: its name says its content and how it was made ready."""
    content = [VERSION, case.key or str(case.image.resolve()), plan.preprocessing.to_json(), plan.class_values]
    content += [sorted(case.codes.items())] if case.codes else []
    return folder / hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _decode(case: Case, plan: Plan, stem: Path) -> None:
    try:
        image = read_image(case.image)
        mask = read_mask(case.mask, like=image)
    except ImageError as error:
        raise TrainingError(error.code, f"{case.name}: {error.reason}", error.cure) from error
    indices = case.indices(mask, plan.class_values)
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
