"""Read and write nnU-Net's raw dataset layout and its splits, so that results can be compared with nnU-Net (v2).

https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from ml_core.dataset.case import Case
from ml_core.dataset.folders import Described, make_case
from ml_core.dataset.reading import Reading
from ml_core.dataset.splits import PARTS, Fold, Name, StoredSplit
from ml_core.errors import MLError
from ml_core.io import GREY_OR_COLOUR, Image, read_image, read_mask
from ml_core.measures.metrics import IGNORED


class NnunetError(MLError):
    """A raw dataset or a file of splits that cannot be used, or cannot be written."""


def read_raw(folder: Path, channel: int | None = None) -> tuple[list[Case], dict[int, str], Reading]:
    """Return the training cases of a raw dataset, the name of each label value, and how its masks are read.

    Nothing is guessed of the masks: the document names the labels, and the one that is ignored.

    If cases have several files (_0000, _0001, …), `channel` chooses the one to use, because an image here is one file:
    of one channel, or of three in colour. Raises NnunetError.
    """
    document = _read_json(folder / "dataset.json")
    try:
        ending, channels, labels = (document[key] for key in ("file_ending", "channel_names", "labels"))
        names = {int(value): str(name) for name, value in labels.items() if not isinstance(value, list)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NnunetError(
            "dataset_json",
            f"In {folder / 'dataset.json'}, channel_names, labels or file_ending is missing or not of the right form.",
            "nnU-Net v2 needs all three; nnUNetv2_convert_old_nnUNet_dataset converts older datasets.",
        ) from error
    if len(names) < len(labels):
        raise NnunetError(
            "regions", "The labels are regions that overlap.", "Give each label one number, and train on these labels."
        )
    ignored = [value for value, name in names.items() if name == "ignore"]
    names = {value: name for value, name in names.items() if value not in ignored}
    reading = Reading(background=0, ignore=list(ignored), merge=[], objects=False)
    cases: list[Case] = []
    for mask in sorted((folder / "labelsTr").glob(f"*{ending}")):
        name = mask.name.removesuffix(ending)
        images = [folder / "imagesTr" / f"{name}_{number:04d}{ending}" for number in range(len(channels))]
        present = [path for path in images if path.exists()]
        if channel is None and len(present) > 1:
            listed = ", ".join(f"{number} ({title})" for number, title in channels.items())
            raise NnunetError(
                "several_channels",
                f"{name} has {len(present)} files, one for each channel: {listed}.",
                "Choose one of them with --channel NUMBER.",
            )
        image = images[0] if channel is None else folder / "imagesTr" / f"{name}_{channel:04d}{ending}"
        if not image.exists():
            raise NnunetError("no_image", f"{image} does not exist.", "Every file in labelsTr needs its image.")
        cases.append(make_case(len(cases) + 1, name, image, mask))
    if not cases:
        raise NnunetError("no_cases", f"{folder / 'labelsTr'} has no files *{ending}.", "Check file_ending.")
    return cases, names, reading


def export_raw(described: Described, out: Path, on_case: Callable[[int, int], None]) -> None:
    """Write cases as a raw dataset, with the labels renumbered 0, 1, 2, …

    A dataset of 2D raster images is written as PNG, any other as .nii.gz. `out` is the folder DatasetNNN_Name below
    nnUNet_raw; it must be empty or not exist. `on_case(done, total)` is called after each case. Raises NnunetError.
    """
    if not re.fullmatch(r"Dataset\d{3}_.+", out.name):
        reason = f"{out.name} is not a folder name that nnU-Net accepts."
        raise NnunetError("name", reason, "Call it DatasetNNN_Name, such as Dataset001_Cells.")
    if out.exists() and any(out.iterdir()):
        raise NnunetError("not_empty", f"{out} is not empty.", "Remove it, or choose another number.")
    fingerprint = described.fingerprint
    pictures = fingerprint.dimensions == 2 and set(fingerprint.families) == {"raster"}
    ending = ".png" if pictures else ".nii.gz"
    for folder in ("imagesTr", "labelsTr"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    values = [item["value"] for item in described.classes]
    for position, case in enumerate(described.cases):
        image = read_image(case.image)
        if image.channels not in GREY_OR_COLOUR:
            reason = f"{case.name} has {image.channels} channels; nnU-Net's layout is written for grey and colour."
            raise NnunetError("several_channels", reason, "Save one channel of each image, and export those.")
        labels = case.indices(read_mask(case.mask, like=image), values, fingerprint.ignored)
        labels[labels == IGNORED] = len(values)
        image_path = out / "imagesTr" / f"{case.name}_0000{ending}"
        label_path = out / "labelsTr" / f"{case.name}{ending}"
        if pictures:
            PILImage.fromarray(_picture(image, fingerprint.channels, case.name)).save(image_path)
            PILImage.fromarray(labels).save(label_path)
        else:
            if image.channels != 1:
                raise NnunetError("colour_volume", f"{case.name} is a volume in colour.", "Make it grey first.")
            _save_nifti(image.array[0], image, image_path)
            _save_nifti(labels, image, label_path)
        on_case(position + 1, len(described.cases))
    channels = ["R", "G", "B"] if fingerprint.channels == 3 else [fingerprint.modality]
    names = ["background", *(item["name"] for item in described.classes[1:])]
    document: dict[str, Any] = {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": {name: index for index, name in enumerate(names)},
        "numTraining": len(described.cases),
        "file_ending": ending,
    }
    # nnU-Net's last label may be one that it ignores.
    if fingerprint.ignored:
        document["labels"]["ignore"] = len(values)
    (out / "dataset.json").write_text(json.dumps(document, indent=1))


def read_splits(path: Path, fold: int, cases: Sequence[Case]) -> StoredSplit:
    """Read fold number `fold` of a splits_final.json, and return it with the ids of the cases instead of their names.

    nnU-Net writes no "test" part; ours may have one. Raises NnunetError, such as for an unknown name or a case in two
    parts.
    """
    folds = _read_json(path)
    if not isinstance(folds, list) or not all(
        isinstance(item, dict) and {"train", "val"} <= set(item) for item in folds
    ):
        raise NnunetError(
            "splits", f"{path} is not a list of splits.", 'Write [{"train": [names], "val": [names]}, …].'
        )
    if not 0 <= fold < len(folds):
        raise NnunetError("fold", f"{path} has no fold {fold}.", f"Choose 0 to {len(folds) - 1}.")
    by_name = {case.name: case.id for case in cases}
    split = {part: list(folds[fold].get(part, [])) for part in PARTS}
    listed = [name for names in split.values() for name in names]
    if unknown := [name for name in listed if name not in by_name]:
        raise NnunetError(
            "unknown_case",
            f"{path} has names that are no case: {', '.join(unknown[:5])}{' …' if len(unknown) > 5 else ''}.",
            "Use the names of the files, without extension and without _0000.",
        )
    if len(set(listed)) < len(listed):
        raise NnunetError("twice", f"Fold {fold} of {path} names a case twice.", "Name each case once.")
    if not split["train"] or not split["val"]:
        reason = f"Fold {fold} of {path} has no case to train on, or none to validate on."
        raise NnunetError("empty_part", reason, "Name a case or more in each of the two parts.")
    train, val, test = ([by_name[name] for name in split[part]] for part in PARTS)
    return StoredSplit(train, val, test)


def write_splits(path: Path, split: StoredSplit, cases: Sequence[Case]) -> None:
    """Write a split, or all its folds, as a splits_final.json. nnU-Net reads "train" and "val" and ignores "test"."""
    names: dict[Name, str] = {case.id: case.name for case in cases}
    parted = split.folds or [Fold(split.train, split.val)]
    folds = [{"train": fold.train, "val": fold.val, "test": split.test} for fold in parted]
    shown = [{part: [names[item] for item in members] for part, members in fold.items() if members} for fold in folds]
    path.write_text(json.dumps(shown, indent=1))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise NnunetError("unreadable", f"{path} cannot be read as JSON.", "Check the path.") from error


def _picture(image: Image, channels: int, name: str) -> NDArray[Any]:
    """Return a 2D image as a PNG holds it without loss: (H, W) or (H, W, 3) uint8, or (H, W) uint16.

    Raises NnunetError not_png or mixed_colours if it does not fit.
    """
    array = image.array
    grey = channels == 1 and array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 65535
    if array.dtype != np.uint8 and not grey:
        raise NnunetError("not_png", f"{name} does not fit into a PNG.", "Save it with 8 bits, or as .nii.gz.")
    if image.channels > channels:
        reason = f"{name} is in colour and most others are grey."
        raise NnunetError("mixed_colours", reason, "Save all images in colour, or all in grey.")
    if channels == 3:
        return np.ascontiguousarray(np.moveaxis(np.broadcast_to(array, (3, *image.shape)), 0, -1))
    plane: NDArray[Any] = array[0] if array.dtype == np.uint8 else array[0].astype(np.uint16)
    return plane


def _save_nifti(array: NDArray[Any], image: Image, path: Path) -> None:
    """Write (D, H, W) or (H, W) with the affine of the image.

    Image and labels are both written in RAS+ axes, because nnU-Net wants them on one grid.
    """
    affine = image.affine
    if affine is None:
        affine = np.diag([*(*reversed(image.spacing or (1.0,) * image.dimensions), 1.0)[:3], 1.0])
    stored = array.transpose()
    kind: Any = nib.Nifti1Image
    nib.save(kind(stored if stored.ndim == 3 else stored[..., None], affine), path)
