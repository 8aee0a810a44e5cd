"""The formats that are read, by the ending of a file's name. What is in a file is the readers' to find out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

Kind = Literal["raster", "nifti", "dicom", "series"]  # which reader


@dataclass(frozen=True)
class Format:
    """One ending of a file's name, and what it says of the file."""

    suffix: str
    """In lower case, with its dot."""
    kind: Kind
    mime: str
    is_volume: bool
    """Made for volumes, which browsers do not show. A TIFF or a DICOM file may be one too; the content tells."""


FORMATS = {
    item.suffix: item
    for item in (
        Format(".png", "raster", "image/png", False),
        Format(".jpg", "raster", "image/jpeg", False),
        Format(".jpeg", "raster", "image/jpeg", False),
        Format(".tif", "raster", "image/tiff", False),
        Format(".tiff", "raster", "image/tiff", False),
        Format(".bmp", "raster", "image/bmp", False),
        Format(".nii.gz", "nifti", "application/gzip", True),
        Format(".nii", "nifti", "application/octet-stream", True),
        Format(".dcm", "dicom", "application/dicom", False),
        Format(".dicom", "dicom", "application/dicom", False),
        Format(".ima", "dicom", "application/dicom", False),
        Format(".zip", "series", "application/zip", True),
    )
}
NAMES = "PNG, JPG, TIFF, BMP, DICOM or NIfTI"  # for sentences


def suffixes_of(*kinds: Kind) -> tuple[str, ...]:
    return tuple(suffix for suffix, item in FORMATS.items() if item.kind in kinds)


SUPPORTED_SUFFIXES = suffixes_of("raster", "nifti", "dicom")  # of single files


def suffix_of(name: str) -> str:
    """The ending of a file's name in lower case, with its dot: ".nii.gz" is one; "" where there is none.

    DICOM files are often named by a UID: an ending that is not in FORMATS need not mean anything.
    """
    base = _base(name).lower()
    known = (suffix for suffix in FORMATS if base.endswith(suffix) and len(base) > len(suffix))
    return next(known, PurePosixPath(base).suffix)


def stem(name: str) -> str:
    """File name without folders and extension; ".nii.gz" is one extension.

    Only a known extension is cut: a DICOM file called "1.2.840.5" keeps its ".5".
    """
    base, suffix = _base(name), suffix_of(name)
    return base[: -len(suffix)] if suffix in FORMATS else base


def _base(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2]
