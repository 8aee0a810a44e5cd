"""Read and write medical and plain image files: `read_image`, `read_mask`, `write_label_map`.

The content of a file, not its name, decides how it is read. Every fault of a file raises an ImageError that says what
is wrong and what to do. The error does not name the file, because the caller knows it.
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
from ml_core.io.image import GREY_OR_COLOUR, Coding, Grid, Image, Limits, Mask, decoding

__all__ = [
    "GREY_OR_COLOUR",
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
    """Read a PNG, JPG, TIFF, BMP, NIfTI or DICOM file, or a folder or ZIP of one DICOM series. Raises ImageError."""
    kind = _kind_of(path)
    if kind == "raster":
        return raster.read_image(path)
    if kind == "nifti":
        return nifti.read_image(path)
    return dicom.read_image(path) if kind == "dicom" else series.read_image(path)


def read_mask(path: Path, like: Image | None = None) -> Mask:
    """Read a label map from any format that `read_image` reads. Raises ImageError.

    `like` is the image that the mask belongs to. With it, a mask of another format is turned to the image's axes: a
    NIfTI mask of a PNG keeps its stored rows and columns, a PNG or TIFF mask of a NIfTI image or DICOM volume is taken
    to lie on the image's stored rows and columns, and the axes of NIfTI and DICOM are flipped or swapped to match.
    Nothing is resampled.
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
    """Write a label map on the grid of the file that `like` was read from, and return the path of the new file.

    `values` are integers or booleans of shape `like.shape`. A 2D raster or DICOM image gives "labels.png": 8-bit grey,
    16-bit grey if a value is over 255, or RGB for coding "rgb". A NIfTI image gives "labels.nii.gz" with its shape,
    orientation and affine. Any other volume gives "labels.nii.gz" with the affine of its series, or the identity.
    Raises ImageError value_range if the format cannot hold a value, and ValueError for a wrong shape or dtype.
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
    """Choose the reader by the content.

    Raises ImageError wrong_extension if the extension names another kind of file.
    """
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
    actual = _sniff(start)
    if actual is not None and claimed not in (None, actual):
        raise ImageError(
            "wrong_extension",
            f"The content is {_NAMES[actual]} file, and the extension says {_NAMES[claimed or actual]} file.",
            f"Rename it to {' or '.join(suffixes_of(actual))}.",
        )
    if actual is not None:
        return actual
    if name.endswith((".hdr", ".img", ".hdr.gz", ".img.gz")):
        raise nifti.pair_of_files()
    # A DICOM file without preamble does not start with a signature, so only its reader can judge it.
    if claimed == "dicom":
        return "dicom"
    # A damaged or truncated NIfTI file goes to its reader, which says what is wrong with it.
    if claimed == "nifti" and (start[:2] == b"\x1f\x8b" or len(start) < 352):
        return "nifti"
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
    """Recognise the kind of a file by its first 352 bytes; None if they match no format."""
    # DICOM is tested before TIFF, because a DICOM preamble may hold a TIFF header (such a file is both).
    if start[128:132] == b"DICM":
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
            # 352 compressed bytes can expand to less than a whole header. Then the header's first field, its size
            # (348 for NIfTI-1, 540 for NIfTI-2), identifies NIfTI.
            return (
                "nifti" if start[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c") else None
            )
    if start[344:348] in (b"n+1\0", b"ni1\0") or start[4:8] in (b"n+2\0", b"ni2\0"):
        return "nifti"
    return None
