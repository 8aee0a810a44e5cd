"""The peer nnU-Net v2 (2.8.1), with its own plan and all its defaults: writes its raw layout and reads its predictions.

`nnunet_driver` trains and predicts. It needs its own environment, because nnU-Net's requirements differ from the
platform's:

    uv venv peers-env --python 3.11 && uv pip install --python peers-env/bin/python nnunetv2==2.8.1

Pictures are written as PNG (NaturalImage2DIO), DICOM slices as 2D NIfTI in HU with their spacing. NIfTI volumes are
copied. Labels are class positions, because nnU-Net needs 0, 1, 2, ...
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from benchmarks.peers import common
from ml_core.io import Image, read_image, read_mask, stem

DATASET = "Dataset001_Peer"


def write_raw(task: common.Task, folder: Path) -> None:
    """Write the task in nnU-Net's raw layout under folder/raw, and the unseen images to folder/unseen."""
    raw = folder / "raw" / DATASET
    for part in (raw / "imagesTr", raw / "labelsTr", folder / "unseen"):
        part.mkdir(parents=True, exist_ok=True)
    ending = ""
    for pair in task.train:
        image, mask = common.load(pair, task.values)
        ending = _write_image(image, Path(pair[0]), raw / "imagesTr")
        target = raw / "labelsTr" / f"{stem(pair[0])}{ending}"
        if ending == ".png":
            Pillow.fromarray(mask).save(target)
        elif image.dimensions == 2:
            _write_slice(mask, image, target)
        else:
            # The labels stay on the stored axes, because the image is copied as it is.
            labels: Any = nib.load(pair[1])
            stored = common.positions(np.rint(np.asarray(labels.dataobj)), task.values)
            _save(stored, labels.affine, target)
    for path, _ in task.unseen:
        _write_image(read_image(Path(path)), Path(path), folder / "unseen")
    # nnU-Net chooses the normalisation by the channels' names: for "CT" it uses the dataset's percentiles, for other
    # names those of each image.
    channels = [task.modality or "image"] if task.channels == 1 else ["R", "G", "B"]
    about = {
        "channel_names": dict(enumerate(channels)),
        "labels": {"background" if index == 0 else f"class {index}": index for index in range(len(task.values))},
        "numTraining": len(task.train),
        "file_ending": ending,
    }
    (raw / "dataset.json").write_text(json.dumps(about))


def read_predictions(task: common.Task, folder: Path, out: Path) -> None:
    """Bring folder/predicted/* to out/predictions/*, in the dataset's own values and on the images' own grids."""
    for pair in task.unseen:
        image = read_image(Path(pair[0]))
        [path] = (folder / "predicted").glob(f"{stem(pair[0])}.[pn]*")
        sliced = image.family == "dicom" and image.dimensions == 2
        stored: Any = nib.load(path) if sliced else None
        indices = np.asarray(stored.dataobj).T if sliced else read_mask(path, like=image).values
        common.write_prediction(indices, pair[0], task.values, out)


def _write_image(image: Image, path: Path, folder: Path) -> str:
    """Write an image to `folder` as <case>_0000 in a format that nnU-Net reads, and return its ending."""
    if image.family == "raster" and image.dimensions == 2:
        array = image.array[0] if image.channels == 1 else np.moveaxis(image.array, 0, -1)
        Pillow.fromarray(np.ascontiguousarray(array)).save(folder / f"{stem(path.name)}_0000.png")
        return ".png"
    target = folder / f"{stem(path.name)}_0000.nii.gz"
    if image.family == "dicom" and image.dimensions == 2:
        _write_slice(image.array[0], image, target)
    elif path.name.endswith(".nii.gz"):
        shutil.copyfile(path, target)
    else:
        raise SystemExit(f"{path.name}: this kind of file cannot be written for nnU-Net.")
    return ".nii.gz"


def _write_slice(array: NDArray[Any], image: Image, target: Path) -> None:
    """Write (H, W) as a 2D NIfTI with the image's spacing in mm."""
    rows, columns = image.spacing or (1.0, 1.0)
    _save(np.ascontiguousarray(array.T), np.diag([columns, rows, 1, 1]), target)


def _save(array: NDArray[Any], affine: NDArray[Any], target: Path) -> None:
    # nibabel has no types for this.
    make: Any = nib.Nifti1Image
    nib.save(make(array, affine), target)
