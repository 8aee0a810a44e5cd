"""Read and write medical and plain image files: `read_image`, `read_mask`, `write_label_map`.

The content of a file, not its name, decides how it is read. Every fault of a file raises an ImageError that says what
is wrong and what to do. The error does not name the file, because the caller knows it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_core.errors import ImageError
from ml_core.io import dicom, nifti, raster, series
from ml_core.io.content import HEAD_BYTES, is_bare_dicom, kind_of
from ml_core.io.display import display_slice, display_volume, is_oriented, to_rgb, to_screen
from ml_core.io.formats import FORMATS, SUPPORTED_SUFFIXES, Kind, stem, suffix_of
from ml_core.io.grid import align
from ml_core.io.image import GREY_OR_COLOUR, Coding, Grid, Image, Limits, Mask, Notice, decoding

__all__ = [
    "GREY_OR_COLOUR",
    "SUPPORTED_SUFFIXES",
    "Coding",
    "Grid",
    "Image",
    "ImageError",
    "Limits",
    "Mask",
    "Notice",
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

_NAMES = {"raster": "a PNG, JPG, TIFF or BMP", "nifti": "a NIfTI", "dicom": "a DICOM", "series": "a ZIP"}


def read_image(path: Path) -> Image:
    """Read a PNG, JPG, TIFF, BMP, NIfTI or DICOM file, or a folder or ZIP of one DICOM series. Raises ImageError."""
    kind, misnamed = _kind_of(path)
    readers = {"raster": raster, "nifti": nifti, "dicom": dicom, "series": series}
    image: Image = readers[kind].read_image(path)
    return replace(image, notices=(*misnamed, *image.notices)) if misnamed else image


def read_mask(path: Path, like: Image | None = None) -> Mask:
    """Read a label map from any format that `read_image` reads. Raises ImageError.

    `like` is the image that the mask belongs to. With it, a mask of another format is turned to the image's axes: a
    NIfTI mask of a PNG keeps its stored rows and columns, a PNG or TIFF mask of a NIfTI image or DICOM volume is taken
    to lie on the image's stored rows and columns, and the axes of NIfTI and DICOM are flipped or swapped to match.
    Nothing is resampled.
    """
    kind, misnamed = _kind_of(path)
    if kind == "raster":
        mask = raster.read_mask(path)
    elif kind == "nifti":
        mask = nifti.read_mask(path, stored_axes=like is not None and like.affine is None)
    else:
        mask = dicom.read_mask(path) if kind == "dicom" else series.read_mask(path)
    if misnamed:
        mask = replace(mask, notices=(*misnamed, *mask.notices))
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


def _kind_of(path: Path) -> tuple[Kind, tuple[Notice, ...]]:
    """Choose the reader by the content. A name that says otherwise is a notice.

    Raises ImageError wrong_extension if the name is that of a known kind and the content is of none.
    """
    with decoding("file", "Check that it exists and was copied completely."):
        if path.is_dir():
            return "series", ()
        if not path.is_file():
            raise ImageError("not_found", "The file does not exist.", "Upload it again.")
        with path.open("rb") as file:
            start = file.read(HEAD_BYTES)
    if not start:
        raise ImageError("empty_file", "The file is empty (0 bytes).", "Export or copy it again.")
    name = path.name.lower()
    claimed = FORMATS[suffix].kind if (suffix := suffix_of(name)) in FORMATS else None
    actual = kind_of(start)
    if actual is not None and claimed not in (None, actual):
        text = f"The name says {_NAMES[claimed or actual]} file, and the content is {_NAMES[actual]} file. "
        return actual, (Notice("wrong_extension", text + "It was read as what it is."),)
    if actual is not None:
        return actual, ()
    if name.endswith((".hdr", ".img", ".hdr.gz", ".img.gz")) and not is_bare_dicom(start):
        raise nifti.pair_of_files()
    # A DICOM file without preamble does not start with a signature, so only its reader can judge it.
    if claimed == "dicom" or (claimed is None and is_bare_dicom(start)):
        return "dicom", ()
    # A damaged or truncated NIfTI file goes to its reader, which says what is wrong with it.
    if claimed == "nifti" and (start[:2] == b"\x1f\x8b" or len(start) < HEAD_BYTES):
        return "nifti", ()
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
