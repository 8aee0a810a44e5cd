"""The task that all peers get: the same training files, the same unseen files, and the same form of predictions.

The splits are fixed by name. The unseen masks are used only to score the predictions.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_core.dataset.pairing import find_pairs
from ml_core.io import Image, read_image, read_mask, stem, write_label_map

_Split = Callable[[list[str]], tuple[list[str], list[str]]]


def _tail(count: int) -> _Split:
    return lambda names: (names[:-count], names[-count:])


def _block(first: int, last: int, gap: int) -> _Split:
    """Slices first..last are unseen. `gap` slices on each side are in neither part, since they resemble unseen ones."""
    return lambda names: (names[: first - gap] + names[last + 1 + gap :], names[first : last + 1])


# Archive → (a function from sorted names to the training and the unseen ones, a description). The last fifth of any
# other archive is unseen.
SPLITS: dict[str, tuple[_Split, str]] = {
    "isbi2012_membrane": (_tail(6), "membrane_00–23 train, membrane_24–29 unseen"),
    "wbc_cells_colour": (_tail(20), "the first 80 train, the last 20 unseen"),
    "chaos_ct3_liver_dicom": (
        _block(50, 65, 2),
        "one patient: slices 50–65 unseen, 48, 49, 66 and 67 left out, the other 58 train; "
        "says nothing about other patients",
    ),
    "brats2015_flair_nifti": (_tail(1), "patients 0001–0005 train, patient 0006 unseen"),
    "brats_slices_png": (_tail(20), "20 slices each of patients 0001–0005 train, 20 of patient 0006 unseen"),
}


@dataclass(frozen=True)
class Task:
    """A task. Files are pairs of paths (image, mask). `values` are the dataset's own label values, background first."""

    name: str
    split: str
    folder: str
    values: list[int]
    train: list[tuple[str, str]]
    unseen: list[tuple[str, str]]
    dimensions: int
    channels: int
    modality: str | None

    @classmethod
    def read(cls, path: Path) -> Task:
        return cls(**json.loads(path.read_text()))

    @property
    def file(self) -> Path:
        """The file that holds the task as JSON."""
        return Path(self.folder) / "task.json"


def prepare(archive: Path, folder: Path) -> Task:
    """Unpack into folder/{train,unseen}/{images,masks}, without files of neither part, and write folder/task.json."""
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "unseen": []}
    with zipfile.ZipFile(archive) as source:
        pairs = {pair.name: pair for pair in find_pairs(source.namelist()).pairs if not pair.is_series}
        names = sorted(pairs)
        split, words = SPLITS.get(archive.stem, (_tail(max(1, len(names) // 5)), "the last fifth by name unseen"))
        for part, chosen in zip(parts, split(names), strict=True):
            for name in chosen:
                files = []
                for kind, entry in (("images", pairs[name].image[0]), ("masks", pairs[name].mask)):
                    path = folder / part / kind / Path(entry).name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(source.read(entry))
                    files.append(str(path.resolve()))
                parts[part].append((files[0], files[1]))
    first = read_image(Path(parts["train"][0][0]))
    values: set[int] = set()
    for image, mask in parts["train"] + parts["unseen"]:
        values |= set(np.unique(read_mask(Path(mask), like=read_image(Path(image))).values).tolist())
    task = Task(
        name=archive.stem,
        split=words,
        folder=str(folder.resolve()),
        values=sorted(values),
        **parts,
        dimensions=first.dimensions,
        channels=first.channels,
        modality=first.modality,
    )
    task.file.write_text(json.dumps(asdict(task)))
    return task


def load(pair: tuple[str, str], values: list[int]) -> tuple[Image, NDArray[np.uint8]]:
    """Read an image (CT in HU), and its mask as class positions 0..K-1 on the image's axes."""
    image = read_image(Path(pair[0]))
    return image, positions(read_mask(Path(pair[1]), like=image).values, values)


def positions(labels: NDArray[Any], values: list[int]) -> NDArray[np.uint8]:
    """Turn the dataset's own label values into class positions. Raises ValueError for a value that no class has."""
    indices = np.searchsorted(values, labels).clip(max=len(values) - 1)
    if not np.array_equal(np.asarray(values)[indices], labels):
        raise ValueError(f"labels other than {values}")
    return indices.astype(np.uint8)


def write_prediction(indices: NDArray[Any], image_path: str, values: list[int], out: Path) -> None:
    """Write class positions on the image's axes to out/predictions/<case>.png or .nii.gz, as the dataset's values."""
    image = read_image(Path(image_path))
    labels = np.asarray(values, np.int32)[indices]
    folder = out / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out) as scratch:
        written = write_label_map(labels, image, Path(scratch))
        written.rename(folder / (stem(image_path) + written.name.removeprefix("labels")))


def parser() -> argparse.ArgumentParser:
    """A parser of the arguments that every peer's process takes."""
    made = argparse.ArgumentParser()
    made.add_argument("task", type=Path, help="task.json")
    made.add_argument("out", type=Path, help="folder for report.json and predictions/")
    made.add_argument("--budget", type=float, required=True, help="seconds of training")
    return made
