"""How the planes of a TIFF form an image: which of them are channels, and which are slices.

ImageJ, OME-TIFF and tifffile name the axes in the first page's description. Pages without a description are slices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from ml_core.errors import ImageError
from ml_core.io.image import LIMITS

IMAGEJ = "ImageJ="
# Axis letters that are slices. Q and I stand for an axis without a name.
_SLICES = "ZQI"
_EXPORT = "Save it from its program as an ImageJ TIFF or OME-TIFF with the right axes, or each image as its own file."
_ONE_TIME = (
    "Give one time point at a time. If these are slices, name the axis so: in ImageJ with Image > Properties, where frames "
    "and slices can be swapped."
)


@dataclass(frozen=True)
class Layout:
    """Where each channel of each slice is stored."""

    planes: NDArray[np.int_]
    """(C, D): the page of each plane. In a file of one page it counts the planes that follow each other from there."""
    is_volume: bool
    """Slices were named or are unnamed pages. Otherwise D is 1, and the image is a picture."""
    is_packed: bool
    """All planes lie behind the file's only page, without pages of their own."""


def layout_of(description: str, pages: Sequence[int], total: int, samples: int, rows_and_columns: int) -> Layout:
    """Find the axes of a file.

    `pages` are the numbers of its pages without previews, of `total` pages; each holds `samples` values for each of
    `rows_and_columns` pixels. Raises ImageError time_series, several_images, bad_axes or too_many_channels.
    """
    if description.startswith(IMAGEJ):
        layout = _imagej(description, pages, samples)
    elif description[:200].lstrip().startswith("<") and "OME" in description[:4000]:
        layout = _ome(description, pages, total, samples)
    elif description.startswith("{") and '"shape"' in description:
        layout = _shaped(description, pages, samples * rows_and_columns, samples)
    else:
        layout = _arranged("Z", {"Z": len(pages)}, pages, "file")
    channels = len(layout.planes) * samples
    if len(layout.planes) > 1 and channels > LIMITS.channels:
        raise too_many_channels(channels)
    return layout


def too_many_channels(channels: int) -> ImageError:
    """The error for an image with more channels than are read."""
    return ImageError(
        "too_many_channels",
        f"The image has {channels} channels; 1 to {LIMITS.channels} are read.",
        "Save the channels that show the structures as a file of their own.",
    )


def _imagej(description: str, pages: Sequence[int], samples: int) -> Layout:
    fields = dict(line.split("=", 1) for line in description.splitlines() if "=" in line)

    def number(name: str) -> int:
        text = fields.get(name, "1").strip()
        if not text.isdigit() or int(text) < 1:
            raise _bad_axes(f"The ImageJ description says {name}={text[:20]}")
        return int(text)

    sizes = {"C": number("channels"), "Z": number("slices"), "T": number("frames")}
    images = number("images") if "images" in fields else max(len(pages), prod(sizes.values()))
    if prod(sizes.values()) == 1:
        sizes["Z"] = images
    # Bio-Formats calls the samples of a pixel channels, too.
    if samples > 1 and sizes["C"] == samples and sizes["Z"] * sizes["T"] == images:
        sizes["C"] = 1
    if prod(sizes.values()) != images:
        raise _bad_axes(
            f"The ImageJ description says {images} images, and {sizes['C']} channels x {sizes['Z']} slices x "
            f"{sizes['T']} frames"
        )
    order = fields.get("order", "czt").strip().upper()
    order = order if sorted(order) == ["C", "T", "Z"] else "CZT"
    return _arranged(order[::-1], sizes, pages, "ImageJ description")


def _shaped(description: str, pages: Sequence[int], page_values: int, samples: int) -> Layout:
    """Read the JSON that tifffile and scikit-image write."""
    try:
        fields = json.loads(description)
        shape = [int(length) for length in fields["shape"]]
        axes = str(fields.get("axes") or "").upper()
    except (ValueError, KeyError, TypeError, RecursionError):
        return _arranged("Z", {"Z": len(pages)}, pages, "file")
    planes = prod(shape) // page_values
    if prod(shape) % page_values or (len(pages) not in (1, planes)):
        raise _bad_axes(f"The description says a shape of {_times(shape)}, and the file has {len(pages)} pages")
    if planes == 1:
        return _arranged("Z", {"Z": 1}, pages, "description")
    if len(axes) == len(shape) and "Y" in axes:
        named = list(zip(axes[: axes.index("Y")], shape, strict=False))
        # Samples that are stored one plane after the other are an axis before the rows.
        if samples > 1 and prod(length for _, length in named) == planes * samples:
            named = [item for item in named if item != ("C", samples) and item[0] != "S"]
    else:
        leading = [length for length in shape[: _leading(shape, planes)] if length > 1]
        if len(leading) > 1:
            raise _bad_axes(f"Its pages form {_times(leading)} planes, and no axis has a name")
        named = [("Z", planes)]
    sizes: dict[str, int] = {}
    for letter, length in named:
        if length > 1:
            letter = "Z" if letter in _SLICES else letter
            if letter in sizes or letter not in "CZT":
                raise _bad_axes(f"The axes of the file are {axes}: only C (channels) and Z (slices) are read before YX")
            sizes[letter] = length
    if prod(sizes.values()) != planes:
        raise _bad_axes(
            f"The description says a shape of {_times(shape)} with axes {axes}, and the pages do not fit it"
        )
    return _arranged("".join(sizes), sizes, pages, "description")


def _leading(shape: Sequence[int], planes: int) -> int:
    """How many of the first axes form the planes."""
    count = 0
    while prod(shape[:count]) < planes:
        count += 1
    return count


def _ome(description: str, pages: Sequence[int], total: int, samples: int) -> Layout:
    try:
        root = ElementTree.fromstring(description)
    except ElementTree.ParseError as error:
        if len(pages) == 1:
            return _arranged("Z", {"Z": 1}, pages, "file")
        raise _bad_axes("The OME description of the file is damaged") from error
    images = [element for element in root.iter() if _name(element) == "Pixels"]
    if not images and len(pages) == 1:
        return _arranged("Z", {"Z": 1}, pages, "file")
    if len(images) != 1:
        what = f"{len(images)} images" if images else "pages whose axes another file describes"
        raise ImageError("several_images", f"The OME-TIFF holds {what}.", _EXPORT)
    attributes = images[0].attrib
    try:
        sizes = {axis: int(attributes[f"Size{axis}"]) for axis in "CZT"}
        order = attributes["DimensionOrder"][2:]
        spread = [int(item.attrib.get("SamplesPerPixel", 1)) for item in images[0] if _name(item) == "Channel"]
        parts = [item for item in images[0] if _name(item) == "TiffData"]
        if samples > 1 and ((sum(spread) == sizes["C"] and max(spread) == samples) or sizes["C"] == samples):
            sizes["C"] //= samples
        if min(sizes.values()) < 1 or sorted(order) != ["C", "T", "Z"] or len(parts) > LIMITS.tiff_pages:
            raise ValueError
        stored = _ome_pages(parts, [sizes[axis] for axis in order], order, pages)
    except (KeyError, ValueError) as error:
        raise _bad_axes("The OME description of the file is damaged") from error
    files = {item.attrib.get("FileName", "") for part in parts for item in part if _name(item) == "UUID"}
    if len(files) > 1:
        raise ImageError("several_images", f"The OME-TIFF is spread over {len(files)} files.", _EXPORT)
    planes = prod(sizes.values())
    if sorted(stored) != list(range(planes)) or max(stored.values()) >= total:
        raise _bad_axes(f"The OME description says {planes} planes, and the file has {len(pages)} pages")
    return _arranged(order[::-1], sizes, [stored[index] for index in range(planes)], "OME description")


def _ome_pages(
    parts: Sequence[ElementTree.Element], lengths: Sequence[int], order: str, pages: Sequence[int]
) -> dict[int, int]:
    """Map each plane to its page. `lengths` are those of the axes of `order`, the fastest first."""
    planes, stored = prod(lengths), dict[int, int]()
    if not parts:
        return dict(enumerate(pages))
    for part in parts:
        first = [int(part.attrib.get(f"First{axis}", 0)) for axis in order]
        index = first[0] + lengths[0] * (first[1] + lengths[1] * first[2])
        page = int(part.attrib.get("IFD", 0))
        count = int(part.attrib.get("PlaneCount", 1 if "IFD" in part.attrib else planes))
        if not 0 <= count <= planes:
            raise ValueError
        stored.update((index + step, page + step) for step in range(count))
    return stored


def _arranged(axes: str, sizes: Mapping[str, int], pages: Sequence[int], source: str) -> Layout:
    """Arrange planes by their axes, the slowest first. Raises ImageError time_series or bad_axes."""
    if sizes.get("T", 1) > 1:
        raise ImageError("time_series", f"The TIFF is a time series of {sizes['T']} frames.", _ONE_TIME)
    lengths = [sizes.get(axis, 1) for axis in axes]
    count = prod(lengths)
    if len(pages) not in (1, count):
        raise _bad_axes(f"The {source} says {count} planes, and the file has {len(pages)} pages")
    if count > LIMITS.voxels:
        raise _bad_axes(f"The {source} says {count} planes")
    is_packed = len(pages) == 1 and count > 1
    planes = np.arange(count) if is_packed else np.asarray(pages)
    missing = [axis for axis in "CZT" if axis not in axes]
    wide: NDArray[Any] = planes.reshape(*lengths, *[1] * len(missing))
    letters = [*axes, *missing]
    ordered = wide.transpose([letters.index(axis) for axis in "TCZ"])[0]
    return Layout(ordered, ordered.shape[1] > 1, is_packed)


def _name(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(length) for length in shape)


def _bad_axes(reason: str) -> ImageError:
    return ImageError("bad_axes", f"{reason}.", _EXPORT)
