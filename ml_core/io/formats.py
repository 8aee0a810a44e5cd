"""The file formats that can be read, by the ending of a file's name. The readers judge the content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

# Names the reader of a file.
Kind = Literal["raster", "nifti", "dicom", "series"]


@dataclass(frozen=True)
class Format:
    """One ending of a file's name, and what it tells about the file."""

    suffix: str
    """Lower case, with its dot."""
    kind: Kind
    """The reader for these files."""
    mime: str
    """The MIME type under which a browser downloads the file."""
    is_volume: bool
    """The format is made for volumes. A TIFF or DICOM file may hold a volume too, but only its content shows that."""
    is_plain: bool = False
    """The format stores pixels without compression, always or often. A ZIP then shrinks a sparse mask to a thousandth."""


FORMATS = {
    item.suffix: item
    for item in (
        Format(".png", "raster", "image/png", False),
        Format(".jpg", "raster", "image/jpeg", False),
        Format(".jpeg", "raster", "image/jpeg", False),
        Format(".tif", "raster", "image/tiff", False, is_plain=True),
        Format(".tiff", "raster", "image/tiff", False, is_plain=True),
        Format(".bmp", "raster", "image/bmp", False, is_plain=True),
        Format(".nii.gz", "nifti", "application/gzip", True),
        Format(".nii", "nifti", "application/octet-stream", True, is_plain=True),
        Format(".dcm", "dicom", "application/dicom", False, is_plain=True),
        Format(".dicom", "dicom", "application/dicom", False, is_plain=True),
        Format(".ima", "dicom", "application/dicom", False, is_plain=True),
        Format(".zip", "series", "application/zip", True),
    )
}
# The formats as a message lists them.
NAMES = "PNG, JPG, TIFF, BMP, DICOM or NIfTI"


def suffixes_of(*kinds: Kind) -> tuple[str, ...]:
    """All endings of the given kinds of files, each with its dot."""
    return tuple(suffix for suffix, item in FORMATS.items() if item.kind in kinds)


# The endings of single files. A ZIP is not among them, since it holds many.
SUPPORTED_SUFFIXES = suffixes_of("raster", "nifti", "dicom")


def suffix_of(name: str) -> str:
    """Return the ending of a file's name in lower case with its dot, or "" if it has none.

    ".nii.gz" counts as one ending. An ending that is not in FORMATS may mean nothing: DICOM files are often named by a
    UID, such as "1.2.840.5".
    """
    base = _base(name).lower()
    known = (suffix for suffix in FORMATS if base.endswith(suffix) and len(base) > len(suffix))
    return next(known, PurePosixPath(base).suffix)


def stem(name: str) -> str:
    """Return a file's name without its folders and its ending. ".nii.gz" and ".ome.tif" count as one ending.

    Only an ending in FORMATS is removed: a DICOM file called "1.2.840.5" keeps its ".5".
    """
    base, suffix = _base(name), suffix_of(name)
    name = base[: -len(suffix)] if suffix in FORMATS else base
    is_ome = suffix in (".tif", ".tiff") and name.lower().endswith(".ome") and len(name) > len(".ome")
    return name[: -len(".ome")] if is_ome else name


def _base(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2]
