"""The store of training data: every case is decoded and normalised once, into files that are memory-mapped.

Memory stays small however large the dataset is, because the operating system drops the pages that are not in use.
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

# The version of what `_decode` writes. Raise it when the same file and plan give other arrays than before.
VERSION = 2
# Places of each class that a case stores, for patches to be put on.
PIXELS_KEPT = 2_000
# Places of each class that are held in memory, over all cases together.
PLACES_IN_MEMORY = 1_000_000


@dataclass(frozen=True)
class StoredCase:
    """A case on the network's grid, stored on disk.

    Its arrays are mapped anew at each access and not kept, so that the memory of a training does not grow with the
    dataset.
    """

    stem: Path
    """The path of its files without their suffixes."""
    shape: tuple[int, ...]
    """The shape of `labels`."""
    places: dict[int, NDArray[np.int32]]
    """Class position → its places: int32 (K, 3) of (slice, row, column) or (K, 4) of (0, slice, row, column)."""

    @property
    def images(self) -> NDArray[np.float16]:
        """float16 (N, C, H, W) or (1, C, D, H, W)."""
        mapped: NDArray[np.float16] = np.load(self.stem.with_suffix(".images.npy"), mmap_mode="r")
        return mapped

    @property
    def labels(self) -> NDArray[np.uint8]:
        """uint8 (N, H, W) or (1, D, H, W): positions in the plan's class_values, or IGNORED."""
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
    """Open all cases, and decode those that are not in `folder` yet. `on_case(done, total)` is called after each case.

    Once the deadline has passed and `least` cases are open, the rest of `cases` is left out of the result.
    Raises TrainingError for a case whose image or mask cannot be read.
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
    """The path of a decoded case without suffix. Its name is a hash of the files' content and of the preprocessing."""
    content = [VERSION, case.key or str(case.image.resolve()), plan.preprocessing.to_json(), plan.class_values]
    content += [sorted(case.codes.items())] if case.codes else []
    content += [plan.fingerprint.ignored] if plan.fingerprint.ignored else []
    return folder / hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _decode(case: Case, plan: Plan, stem: Path) -> None:
    try:
        image = read_image(case.image)
        mask = read_mask(case.mask, like=image)
    except ImageError as error:
        raise TrainingError(error.code, f"{case.name}: {error.reason}", error.cure) from error
    indices = case.indices(mask, plan.class_values, plan.fingerprint.ignored)
    labels = labels_to_network(indices, image, plan.preprocessing)
    _save(stem.with_suffix(".images.npy"), preprocess(image, plan.preprocessing).astype(np.float16))
    _save(stem.with_suffix(".labels.npy"), labels)
    # The places are written last: where their file exists, the other two are complete.
    _save(stem.with_suffix(".places.npy"), _places(labels, len(plan.class_values)))


def _places(labels: NDArray[np.uint8], classes: int) -> NDArray[np.int32]:
    """Up to PIXELS_KEPT random places of each class: int32 rows of (class, *index in `labels`)."""
    rng = np.random.default_rng(0)
    rows = [np.zeros((0, 1 + labels.ndim), np.int32)]
    for index in range(classes):
        pixels = np.flatnonzero(labels == index)
        if pixels.size > PIXELS_KEPT:
            pixels = rng.choice(pixels, PIXELS_KEPT, replace=False)
        places = np.stack(np.unravel_index(pixels, labels.shape), axis=1)
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
        of_class = rows[rows[:, 0] == index, 1:]
        # A copy, because a view would keep all rows in memory.
        places[int(index)] = of_class[:: -(-len(of_class) // max(1, most_places))].copy()
    return StoredCase(stem, shape, places)
