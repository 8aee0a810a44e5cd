"""Medical and plain image files in and out: `read_image`, `read_mask`, `write_label_map`.

The content decides how a file is read. Everything that is wrong with a file is an ImageError that says why and what
to do; it does not name the file itself, which the caller knows.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_core.errors import ImageError
from ml_core.io import dicom, nifti, raster, series
from ml_core.io.display import display_slice, display_volume, is_oriented, to_rgb, to_screen
from ml_core.io.formats import FORMATS, SUPPORTED_SUFFIXES, Kind, stem, suffix_of, suffixes_of
from ml_core.io.grid import align
from ml_core.io.image import Coding, Grid, Image, Limits, Mask, decoding

__all__ = [
    "SUPPORTED_SUFFIXES",
    "Coding",
    "Grid",
    "Image",
    "ImageError",
    "Limits",
    "Mask",
    "display_slice",
    "display_volume",
    "is_oriented",
    "read_image",
    "read_mask",
    "stem",
    "suffix_of",
    "to_rgb",
    "to_screen",
    "write_label_map",
]

_RASTER_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
_NAMES = {"raster": "a PNG, JPG, TIFF or BMP", "nifti": "a NIfTI", "dicom": "a DICOM", "series": "a ZIP"}


def read_image(path: Path) -> Image:
    """Read PNG, JPG, TIFF, BMP, NIfTI, DICOM, or a folder or ZIP of one DICOM series. Raises ImageError."""
    kind = _kind_of(path)
    if kind == "raster":
        return raster.read_image(path)
    if kind == "nifti":
        return nifti.read_image(path)
    return dicom.read_image(path) if kind == "dicom" else series.read_image(path)


def read_mask(path: Path, like: Image | None = None) -> Mask:
    """Read a label map from any of the formats of `read_image`. Raises ImageError.

    With `like`, the image that the mask belongs to, a mask of another format family is turned to the image's axes:
    a NIfTI mask of a PNG keeps its rows and columns, a PNG or TIFF mask of a NIfTI image or DICOM volume follows the
    image's stored rows and columns, and NIfTI and DICOM are flipped onto each other. Nothing is resampled.
    """
    kind = _kind_of(path)
    if kind == "raster":
        mask = raster.read_mask(path)
    elif kind == "nifti":
        mask = nifti.read_mask(path, stored_axes=like is not None and like.affine is None)
    else:
        mask = dicom.read_mask(path) if kind == "dicom" else series.read_mask(path)
    return mask if like is None else align(mask, like)


def write_label_map(values: NDArray[Any], like: Image, folder: Path, coding: Coding = "values") -> Path:
    """Write a label map on the own grid of `like` and return the new file.

    `values` are integers of shape `like.shape`. A 2D raster or DICOM image gives "labels.png" (8-bit grey, 16-bit
    where a value is over 255, RGB for coding "rgb"); NIfTI gives "labels.nii.gz" with the shape, orientation and
    affine of the input; other volumes "labels.nii.gz" with the affine of the series, or the identity.
    Raises ImageError (code value_range) where the format cannot hold a value, ValueError on a wrong shape or dtype.
    """
    if tuple(values.shape) != like.shape or values.dtype.kind not in "iub":
        raise ValueError(f"expected integers of shape {like.shape}, got {values.dtype} of {values.shape}")
    values = values.astype(np.uint8) if values.dtype.kind == "b" else values
    if like.dimensions == 2 and like.family != "nifti":
        path = folder / "labels.png"
        raster.write_labels(values, path, coding)
    else:
        path = folder / "labels.nii.gz"
        nifti.write_labels(values, like.grid, path)
    return path


def _kind_of(path: Path) -> Kind:
    """Which reader the content asks for; refused when the extension claims another family."""
    with decoding("file", "Check that it exists and was copied completely."):
        if path.is_dir():
            return "series"
        if not path.is_file():
            raise ImageError("not_found", "The file does not exist.", "Upload it again.")
        with path.open("rb") as file:
            start = file.read(352)
    if not start:
        raise ImageError("empty_file", "The file is empty (0 bytes).", "Export or copy it again.")
    name = path.name.lower()
    claimed = FORMATS[suffix].kind if (suffix := suffix_of(name)) in FORMATS else None
    found = _sniff(start)
    if found is not None and claimed not in (None, found):
        raise ImageError(
            "wrong_extension",
            f"The content is {_NAMES[found]} file, and the extension says {_NAMES[claimed or found]} file.",
            f"Rename it to {' or '.join(suffixes_of(found))}.",
        )
    if found is not None:
        return found
    if name.endswith((".hdr", ".img", ".hdr.gz", ".img.gz")):
        raise nifti.pair_of_files()
    if claimed == "dicom":
        return "dicom"  # files without preamble cannot be told by their start
    if claimed == "nifti" and (start[:2] == b"\x1f\x8b" or len(start) < 352):
        return "nifti"  # damaged or cut off: the reader says what is wrong
    if claimed is not None:
        raise ImageError(
            "wrong_extension",
            f"The extension says {_NAMES[claimed]} file, and the content is none.",
            "Export it again, or give the file its right extension.",
        )
    raise ImageError(
        "unsupported_format",
        "The format is not known.",
        f"Use {', '.join(suffix[1:] for suffix in SUPPORTED_SUFFIXES)}.",
    )


def _sniff(start: bytes) -> Kind | None:
    if start[128:132] == b"DICM":  # first: a preamble may hold a TIFF header, for files that are both
        return "dicom"
    if start.startswith(_RASTER_STARTS):
        return "raster"
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "series"
    if start[:2] == b"\x1f\x8b":
        try:
            start = zlib.decompressobj(31).decompress(start, 352)
        except zlib.error:
            return None
        if len(start) < 348:
            # 352 packed bytes can be too few for a whole header; the size field tells NIfTI well enough.
            return (
                "nifti" if start[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c") else None
            )
    if start[344:348] in (b"n+1\0", b"ni1\0") or start[4:8] in (b"n+2\0", b"ni2\0"):
        return "nifti"
    return None
