"""Tiny images and masks, drawn into every format that the platform reads. The same seed draws the same picture."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MultiFrameGrayscaleWordSecondaryCaptureImageStorage

Array = NDArray[Any]

SERIES_UID = "1.2.826.0.1.3680043.8.498.1"
COLOURS = ((0, 0, 0), (200, 30, 30), (30, 200, 30), (30, 30, 200))


def draw_pair(rng: np.random.Generator, size: int, classes: int = 2) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image uint8 (size, size) of discs on noise, and its labels 0..classes-1: the brighter, the higher the class."""
    rows, columns = np.mgrid[:size, :size]
    labels = np.zeros((size, size), np.uint8)
    for value in range(1, classes):
        for _ in range(2):
            row, column = rng.integers(size // 4, size - size // 4, 2)
            radius = rng.integers(max(2, size // 10), max(3, size // 5))
            labels[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = value
    clean = 40 + labels * (180.0 / max(1, classes - 1))
    image = np.clip(clean + rng.normal(0, 12, labels.shape), 0, 255).astype(np.uint8)
    return image, labels


def draw_volume(
    rng: np.random.Generator, shape: tuple[int, int, int], classes: int = 2
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """An image int16 (D, H, W) with a ball per class and no symmetry, and its labels."""
    grid = np.indices(shape)
    labels = np.zeros(shape, np.uint8)
    for value in range(1, classes):
        centre = [rng.uniform(0.3, 0.6) * n for n in shape]
        inside = sum(((axis - c) / (0.3 * n)) ** 2 for axis, c, n in zip(grid, centre, shape, strict=True)) <= 1
        labels[inside] = value
    ramp = grid[0] * 3 + grid[1] * 2 + grid[2]
    return (labels * 300.0 + ramp + rng.normal(0, 5, shape)).astype(np.int16), labels


def write_png(path: Path, array: Array, mode: str | None = None) -> Path:
    """(H, W) uint8, uint16 or bool, or (H, W, 2..4) uint8; `mode` converts through Pillow first ("1", "LA", ...)."""
    picture = PIL.Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path, "PNG")
    return path


def write_jpg(path: Path, array: Array, orientation: int | None = None, quality: int = 95) -> Path:
    """`orientation` writes an EXIF orientation tag (1 to 8)."""
    exif = PIL.Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    PIL.Image.fromarray(array).save(path, "JPEG", quality=quality, exif=exif)
    return path


def write_tiff(path: Path, pages: Array | Sequence[Array], **options: Any) -> Path:
    """One array is one page; a sequence of arrays a TIFF of several pages."""
    arrays = [pages] if isinstance(pages, np.ndarray) else pages
    first, *rest = [PIL.Image.fromarray(page) for page in arrays]
    first.save(path, "TIFF", save_all=bool(rest), append_images=rest, **options)
    return path


def write_bmp(path: Path, array: Array) -> Path:
    PIL.Image.fromarray(array).save(path, "BMP")
    return path


def write_palette(path: Path, labels: Array, colours: Sequence[tuple[int, int, int]] = COLOURS) -> Path:
    """Labels (H, W) as a palette PNG whose indices are the labels."""
    picture = PIL.Image.fromarray(labels.astype(np.uint8), mode="P")
    picture.putpalette([channel for colour in colours for channel in colour])
    picture.save(path, "PNG")
    return path


def write_rgb_mask(path: Path, labels: Array, colours: Sequence[tuple[int, int, int]] = COLOURS) -> Path:
    """Labels (H, W) as an RGB PNG of one colour per label."""
    return write_png(path, np.array(colours, np.uint8)[labels])


def write_nifti(
    path: Path, array: Array, affine: Array | None = None, *, slope: float | None = None, intercept: float = 0.0
) -> Path:
    """An array in NIfTI's own order (X, Y[, Z, ...]); the spacing 1, 1, 2 mm in RAS without an affine."""
    affine = np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine
    picture: Any = nib.Nifti1Image(array, affine, dtype=array.dtype)
    if slope is not None:
        picture.header.set_slope_inter(slope, intercept)
        # nibabel would divide the pixels again; here the array is what is stored.
        raw = picture.header.copy()
        raw.set_data_offset(352)
        path.write_bytes(raw.binaryblock + bytes(4) + array.tobytes(order="F"))
        return path
    nib.save(picture, path)
    return path


def dicom_dataset(array: Array, **tags: Any) -> FileDataset:
    """A CT slice of (H, W) or (H, W, 3), or frames (F, H, W), with a plane at the origin; `tags` are set last, None deletes."""
    rgb = array.ndim >= 3 and array.shape[-1] == 3
    frames = array.ndim - (1 if rgb else 0) == 3
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = (
        MultiFrameGrayscaleWordSecondaryCaptureImageStorage if frames else UID(CTImageStorage)
    )
    meta.MediaStorageSOPInstanceUID = UID(f"{SERIES_UID}.{tags.get('InstanceNumber', 1)}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = SERIES_UID, f"{SERIES_UID}.0"
    dataset.PatientID, dataset.PatientName, dataset.Modality = "patient-7", "Doe^Jane", "CT"
    dataset.Rows, dataset.Columns = array.shape[-3:-1] if rgb else array.shape[-2:]
    dataset.SamplesPerPixel = 3 if rgb else 1
    dataset.PhotometricInterpretation = "RGB" if rgb else "MONOCHROME2"
    if rgb:
        dataset.PlanarConfiguration = 0
    if frames:
        dataset.NumberOfFrames = array.shape[0]
    bits = array.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(array.dtype.kind == "i")
    dataset.PixelSpacing, dataset.SliceThickness = [0.5, 0.75], 2.0
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0.0, 0.0, 0.0], [1, 0, 0, 0, 1, 0]
    dataset.PixelData = array.tobytes()
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def save_dicom(dataset: Dataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_dicom_slice(path: Path, array: Array, **tags: Any) -> Path:
    """(H, W) or (H, W, 3) as one DICOM file; see `dicom_dataset` for the tags."""
    return save_dicom(dicom_dataset(array, **tags), path)


def write_dicom_series(folder: Path, volume: Array, gap: float = 2.0, **tags: Any) -> Path:
    """(D, H, W) as a folder of slices, bottom first in space, named so that the file names sort otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, array in enumerate(volume):
        own = {"ImagePositionPatient": [0.0, 0.0, gap * index], "InstanceNumber": index + 1, **tags}
        write_dicom_slice(folder / f"IM{(index * 7 + 3) % len(volume):03d}_{index}", array, **own)
    return folder


def write_dicom_multiframe(path: Path, volume: Array, gap: float = 2.0, **tags: Any) -> Path:
    """(F, H, W) as one file, classic multi-frame with SpacingBetweenSlices."""
    return write_dicom_slice(path, volume, SpacingBetweenSlices=gap, **tags)


def zip_folder(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder).as_posix())
    return path
