"""Small synthetic datasets as ZIP files in memory: a bright disc on dim noise, easy enough to be learnt in seconds."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image as PILImage
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

SIDE = 64
# Oblong voxels, turned and mirrored axes, an origin off zero: an affine that no default would produce.
AFFINE = np.array([[-0.9, 0, 0, 30], [0, 0.8, 0, -20], [0, 0, 3, 7], [0, 0, 0, 1]], dtype=np.float64)
VOLUME_SHAPE = (24, 28, 6)  # x, y, z of the file
# Enough for the disc to be found, little enough for a few seconds.
QUICK = {"epochs": 2, "patch_size": 64, "batch_size": 4, "learning_rate": 0.003, "augmentation": "none"}
# The least work an epoch can be, for tests in which trainings are interrupted.
TINY = {"architecture": "linknet", "encoder": "mobilenet_v2", "patch_size": 32, "batch_size": 2, "augmentation": "none"}


def disc(seed: int, side: int = SIDE, *, faint: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A greyscale picture (side, side) uint8 and where its disc is. faint: so little brighter that no model finds it exactly."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    middle = rng.uniform(0.35, 0.65, 2) * side
    inside = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 < (side * rng.uniform(0.18, 0.28)) ** 2
    low, high, noise = (90, 130, 40) if faint else (50, 200, 8)
    grey = np.where(inside, high, low) + rng.normal(0, noise, (side, side))
    return grey.clip(0, 255).astype(np.uint8), inside


def png(array: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def mask_png(seed: int, side: int = SIDE) -> bytes:
    """The mask of `disc(seed)` with the values 0 and 255."""
    return png(disc(seed, side)[1].astype(np.uint8) * 255)


def zip_of(files: dict[str, bytes]) -> bytes:
    """The same files give the same bytes: no entry carries the time of day."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def png_dataset(pairs: int = 8, side: int = SIDE, *, faint: bool = False) -> bytes:
    files = {}
    for seed in range(pairs):
        files[f"discs/images/case_{seed:02d}.png"] = png(disc(seed, side, faint=faint)[0])
        files[f"discs/masks/case_{seed:02d}_mask.png"] = mask_png(seed, side)
    return zip_of(files)


def ball(seed: int) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """A volume of VOLUME_SHAPE int16 and where its ball is (the same disc in all slices but the first and the last)."""
    rng = np.random.default_rng(seed)
    x, y, z = np.mgrid[: VOLUME_SHAPE[0], : VOLUME_SHAPE[1], : VOLUME_SHAPE[2]]
    middle = rng.uniform(10, 14, 2)
    inside = ((x - middle[0]) ** 2 + (y - middle[1]) ** 2 < 36) & (z > 0) & (z < VOLUME_SHAPE[2] - 1)
    grey = np.where(inside, 900, 100) + rng.normal(0, 20, VOLUME_SHAPE)
    return grey.astype(np.int16), inside


def nifti(array: NDArray[np.int16] | NDArray[np.uint8]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.nii.gz"
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
        return path.read_bytes()


def read_nifti(content: bytes) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Voxels as whole numbers, and the affine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.nii.gz"
        path.write_bytes(content)
        volume = nibabel.load(path)
        assert isinstance(volume, nibabel.Nifti1Image)
        assert volume.affine is not None
        return np.asarray(volume.dataobj).astype(np.int64), np.asarray(volume.affine, dtype=np.float64)


def nifti_dataset(volumes: int = 3) -> bytes:
    files = {"dataset.json": json.dumps({"name": "balls"}).encode()}
    for seed in range(volumes):
        voxels, inside = ball(seed)
        files[f"imagesTr/sub-{seed:02d}_0000.nii.gz"] = nifti(voxels)
        files[f"labelsTr/sub-{seed:02d}.nii.gz"] = nifti(inside.astype(np.uint8) * 2)
    return zip_of(files)


def dicom(seed: int, patient: str) -> bytes:
    """One slice of `disc(seed)` as CT: 12 bits in 16, with a rescale to Hounsfield units and a pixel spacing."""
    grey, _ = disc(seed)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slice_ = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    slice_.SOPClassUID, slice_.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    slice_.StudyInstanceUID, slice_.SeriesInstanceUID = generate_uid(), generate_uid()
    slice_.PatientID, slice_.PatientName, slice_.Modality = patient, "Secret^Name", "CT"
    slice_.Rows, slice_.Columns = grey.shape
    slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 12, 11, 0
    slice_.PixelSpacing, slice_.RescaleSlope, slice_.RescaleIntercept = [0.7, 0.7], 1, -100
    slice_.PixelData = grey.astype("<u2").tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, slice_, enforce_file_format=True)
    return buffer.getvalue()


def dicom_dataset(slices: int = 6) -> bytes:
    """Two slices a patient."""
    files = {}
    for seed in range(slices):
        files[f"images/slice_{seed}.dcm"] = dicom(seed, f"patient-{seed // 2}")
        files[f"masks/slice_{seed}.png"] = mask_png(seed)
    return zip_of(files)
