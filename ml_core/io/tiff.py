"""Read TIFF with tifffile: its pages, and which of them are channels or slices (`ml_core.io.tiff_layout`)."""

from __future__ import annotations

import logging
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import imagecodecs  # noqa: F401  # tifffile calls it, and reads only uncompressed files without it
import numpy as np
import PIL.Image
import tifffile
from numpy.typing import NDArray

from ml_core.errors import ImageError
from ml_core.io.image import LIMITS, check_size, decoding
from ml_core.io.pixels import CURE, WHAT, Pixels, hex_colours, jpeg_frame, varies
from ml_core.io.tiff_layout import IMAGEJ, Layout, layout_of, too_many_channels

# What tifffile remarks about a file is said in the error, or does not matter.
logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)

_JPEG, _JPEG_2000, _WEBP = (6, 7), (33003, 33004, 33005, 34712), (34927, 50001)
# None, CCITT (three kinds), LZW, Deflate (two numbers), PackBits, LZMA, Zstandard (two numbers), and the lossy ones.
_COMPRESSIONS = {1, 2, 3, 4, 5, 8, 32946, 32773, 34925, 34926, 50000, 7, *_JPEG_2000, *_WEBP}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
# Programs that lay out a file in ways of their own, which this reader does not follow.
_FOREIGN = {"stk": "MetaMorph (STK)", "fluoview": "FluoView", "eer": "EER", "sis": "Olympus SIS", "mdgel": "MD Gel"}
_REDUCED = 1
# OME describes twenty thousand planes in a fifth of this. A longer one is cut, and then refused as damaged.
_MAX_DESCRIPTION = 32 * 1024**2
# Bytes of a segment in which its own header is looked for.
_HEAD = 1 << 16


def load(path: Path, *, expand: bool) -> Pixels:
    """Decode a TIFF. With `expand` (for images) palettes become colours, and 1, 2 and 4 bits are spread over 0..255.

    White is the highest value, also where the file stores it as 0, except in files of ImageJ and tifffile, where only the
    display is inverted. Raises ImageError.
    """
    with decoding(WHAT, CURE), path.open("rb") as file:
        total = _count_pages(file)
        file.seek(0)
        # These two flags would let tifffile guess where pages lie that have no header.
        with tifffile.TiffFile(file, name="image.tif", _multifile=False, is_ndpi=False, is_scanimage=False) as tif:
            return _read(tif, total, expand=expand)


def _read(tif: Any, total: int, *, expand: bool) -> Pixels:
    pages = [_checked(tif.pages[index], index) for index in range(total)]
    kept = [index for index, page in enumerate(pages) if not page.subfiletype & _REDUCED] or [0]
    first = pages[kept[0]]
    _check_foreign(tif, first)
    description = str(first.description or "")[:_MAX_DESCRIPTION]
    layout = layout_of(description, kept, total, first.samplesperpixel, first.imagelength * first.imagewidth)
    height, width = first.imagelength, first.imagewidth
    channels, slices = layout.planes.shape
    check_size((slices, height, width) if layout.is_volume else (height, width))
    size = layout.planes.size * height * width * first.samplesperpixel * first.dtype.itemsize
    if size > LIMITS.volume_bytes:
        raise ImageError(
            "too_large",
            f"The file expands to {size / 1024**3:.1f} GiB; at most {LIMITS.volume_bytes / 1024**3:g} GiB are read.",
            "Save it with 8 or 16 bits per value, crop it or scale it down.",
        )
    if not layout.is_packed:
        _check_alike(pages, layout.planes.ravel().tolist(), kept[0])
    plane = _Planes(tif, pages, first, layout, expand=expand)
    opening = plane.read(int(layout.planes[0, 0]))
    count = len(opening) * channels
    if count > LIMITS.channels:
        raise too_many_channels(count)
    array = opening
    if layout.planes.size > 1:
        whole = np.empty((channels, slices, *opening.shape), opening.dtype)
        for at, number in np.ndenumerate(layout.planes):
            whole[at] = opening if at == (0, 0) else plane.read(int(number))
        # The samples of a pixel are channels, too.
        joined = np.moveaxis(whole, 2, 1).reshape(count, slices, *opening.shape[1:])
        array = joined if layout.is_volume else joined[:, 0]
    is_rgb = plane.is_rgb and count == 3
    return Pixels(array, is_rgb, plane.palette, first.compression in (*_JPEG, *_WEBP), plane.has_alpha)


class _Planes:
    """Decodes the planes of a file. `palette` and `has_alpha` are complete when all planes were read."""

    def __init__(self, tif: Any, pages: Sequence[Any], first: Any, layout: Layout, *, expand: bool) -> None:
        self._tif, self._pages, self._first, self._layout, self._expand = tif, pages, first, layout, expand
        # These programs store a pixel as it is, and "white is zero" inverts its display only. tifffile writes all booleans
        # so, and with it scikit-image.
        writers = str(first.description or ""), str(first.software or "")
        self._is_inverted = first.photometric == _WHITE_IS_ZERO and not writers[0].startswith(IMAGEJ)
        self._is_inverted &= not writers[1].startswith("tifffile")
        # ImageJ shows the channels of a composite in colours, whose palettes mean nothing for the values.
        self._has_palette = first.photometric == _PALETTE and len(layout.planes) == 1
        self.is_rgb = first.photometric in (_RGB, _YCBCR, _CMYK) or (self._has_palette and expand)
        self.has_alpha = False
        self.palette: list[str] | None = None
        self._table = _colour_table(first) if self._has_palette else None
        if self._table is not None and not expand:
            self.palette = hex_colours(self._table)

    def read(self, number: int) -> NDArray[Any]:
        """Decode one plane to (samples, H, W): colours, channels, or a single value; without alpha."""
        page = self._first if self._layout.is_packed else self._pages[number]
        stored = self._packed(number) if self._layout.is_packed else page.asarray(maxworkers=1)
        samples: NDArray[Any] = stored[None] if stored.ndim == 2 else stored
        if stored.ndim == 3 and page.planarconfig == 1:
            samples = np.moveaxis(stored, -1, 0)
        if samples.shape != (page.samplesperpixel, page.imagelength, page.imagewidth):
            raise ValueError("The decoded pixels have another shape than the page.")
        return _upright(self._values(samples, page), page)

    def _packed(self, number: int) -> NDArray[Any]:
        """Read a plane that has no page of its own, behind the planes before it."""
        page = self._first
        count = page.imagelength * page.imagewidth * page.samplesperpixel
        dtype = np.dtype(page.dtype).newbyteorder(self._tif.byteorder)
        start, needed = page.dataoffsets[0], self._layout.planes.size * count * dtype.itemsize
        is_plain = page.compression == 1 and page.is_contiguous and page.bitspersample == dtype.itemsize * 8
        if not is_plain or start + needed > self._tif.filehandle.size:
            raise ImageError(
                "bad_axes",
                f"The file says that it holds {self._layout.planes.size} planes, and it has one page and no room for "
                "more (a part may be missing).",
                "Save the whole stack again from its program.",
            )
        self._tif.filehandle.seek(start + number * count * dtype.itemsize)
        values = np.frombuffer(self._tif.filehandle.read(count * dtype.itemsize), dtype, count)
        shape: tuple[int, ...] = (page.imagelength, page.imagewidth)
        if page.samplesperpixel > 1:
            shape = (*shape, page.samplesperpixel) if page.planarconfig == 1 else (page.samplesperpixel, *shape)
        return values.astype(dtype.newbyteorder("=")).reshape(shape)

    def _values(self, samples: NDArray[Any], page: Any) -> NDArray[Any]:
        alphas = {
            len(samples) - len(page.extrasamples) + at for at, kind in enumerate(page.extrasamples) if kind in (1, 2)
        }
        if page.photometric == _RGB and len(samples) == 4 and not alphas and self._is_padding(samples[3]):
            alphas = {3}
        self.has_alpha |= any(varies(samples[index]) for index in alphas)
        if alphas:
            samples = samples[[index for index in range(len(samples)) if index not in alphas]]
        bits, kind = int(page.bitspersample), samples.dtype.kind
        if self._is_inverted and kind in "bu":
            samples = ~samples if kind == "b" else samples.dtype.type(2**bits - 1) - samples
        if self._table is not None:
            if not self._expand:
                return samples[:1]
            colours: NDArray[Any] = np.moveaxis(self._table[samples[0]], -1, 0)
            self.is_rgb = bool((self._table[:, :1] != self._table).any())
            return colours if self.is_rgb else colours[:1]
        if (space := _space(page)) is not None:
            picture = PIL.Image.frombytes(space, samples.shape[:0:-1], np.moveaxis(samples, 0, -1).tobytes())
            colours = np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0)
            return colours
        if kind == "b":
            return samples.astype(np.uint8) * np.uint8(255 if self._expand else 1)
        if bits in (2, 4) and kind == "u" and self._expand:
            return samples * np.uint8(255 // (2**bits - 1))
        return samples

    def _is_padding(self, sample: NDArray[Any]) -> bool:
        """Whether the fourth sample of RGB, of which the file does not say what it is, is opaque alpha or padding.

        In an image any other value may be a channel that happens to be empty.
        """
        if self._layout.planes.size > 1 or varies(sample):
            return False
        return not self._expand or sample.dtype.kind != "u" or bool(sample.flat[0] == np.iinfo(sample.dtype).max)


def _count_pages(file: IO[bytes]) -> int:
    """Follow the chain of pages without reading them. Raises ImageError too_many_pages, and ValueError for a loop."""
    start = file.read(16)
    order = "<" if start[:2] == b"II" else ">"
    is_big = struct.unpack(order + "H", start[2:4])[0] == 43
    count_form, offset_form, entry = ("Q", "Q", 20) if is_big else ("H", "I", 12)
    size, seen = file.seek(0, 2), set[int]()
    (offset,) = struct.unpack_from(order + offset_form, start, 8 if is_big else 4)
    while offset:
        if offset in seen or offset >= size:
            raise ValueError("truncated" if offset >= size else "loop")
        seen.add(offset)
        if len(seen) > LIMITS.tiff_pages:
            raise ImageError(
                "too_many_pages", f"The TIFF has more than {LIMITS.tiff_pages:,} pages.", "Split it into several files."
            )
        file.seek(offset)
        (entries,) = struct.unpack(order + count_form, file.read(struct.calcsize(count_form)))
        if entries > 4096:
            raise ValueError("too many tags")
        file.seek(entries * entry, 1)
        (offset,) = struct.unpack(order + offset_form, file.read(struct.calcsize(offset_form)))
    return len(seen)


def _checked(page: Any, index: int) -> Any:
    """Refuse a page that cannot be read rightly, before anything of it is decoded."""
    height, width, samples = int(page.imagelength), int(page.imagewidth), int(page.samplesperpixel)
    check_size((height, width))
    if page.is_tiled:
        check_size((int(page.tilelength), int(page.tilewidth)))
    name = getattr(page.photometric, "name", str(page.photometric))
    plain = page.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
    is_jpeg_colour = page.photometric == _YCBCR and page.compression in _JPEG
    is_palette = page.photometric == _PALETTE and samples == 1
    if not (plain or is_palette or is_jpeg_colour or _space(page) is not None):
        raise ImageError(
            "unsupported_pixels", f"The TIFF colour type {name} is not supported.", "Save it as grey or RGB."
        )
    if samples > LIMITS.channels:
        raise too_many_channels(samples)
    if page.dtype is None or page.dtype.kind not in "buif":
        raise ImageError(
            "unsupported_pixels",
            f"TIFF values of type {page.dtype or f'{page.bitspersample} bits'} are not supported.",
            "Save them as 8-bit, 16-bit or 32-bit numbers.",
        )
    if page.compression not in _COMPRESSIONS:
        method = getattr(page.compression, "name", str(page.compression))
        raise ImageError(
            "unsupported_pixels",
            f"The TIFF compression {method} is not supported.",
            "Save it without compression, or with LZW or Deflate.",
        )
    if page.imagedepth != 1:
        raise ImageError("bad_axes", f"Page {index + 1} of the TIFF is a volume by itself.", "Save a page per slice.")
    if page.compression != 1:
        _check_segments(page)
    return page


def _space(page: Any) -> str | None:
    """Pillow's name of a colour space of 8 bits that becomes RGB after decoding; None for others.

    The decoder turns the YCbCr of a JPEG to RGB. Other YCbCr may have fewer colours than pixels, which is not read.
    """
    is_bytes, count = page.dtype == np.uint8, page.samplesperpixel - len(page.extrasamples)
    if page.photometric == _CMYK and is_bytes and count == 4:
        return "CMYK"
    subsampling = page.tags.get(530)
    is_whole = subsampling is not None and tuple(subsampling.value) == (1, 1)
    if page.photometric == _YCBCR and page.compression not in _JPEG and is_bytes and count == 3 and is_whole:
        return "YCbCr"
    return None


def _check_segments(page: Any) -> None:
    """Refuse compressed segments that end behind the file, or whose own header tells a larger size than their page.

    Decoders invent the missing part of a JPEG, and a large segment could fill the memory.
    """
    height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.imagelength, page.imagewidth)
    file = page.parent.filehandle
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        if offset + count > file.size:
            raise EOFError("truncated segment")
        if page.compression not in (*_JPEG, *_JPEG_2000):
            continue
        file.seek(offset)
        size = _stream_size(file.read(min(count, _HEAD)))
        if size is not None and (size[0] > height or size[1] > width):
            raise ImageError("unreadable", "The compressed pixels have another size than the TIFF's header says.", CURE)


def _stream_size(head: bytes) -> tuple[int, int] | None:
    """Read (rows, columns) from the start of a JPEG or JPEG 2000 stream; None if they are not in it."""
    at = head.find(b"\xff\x4f\xff\x51")
    if at >= 0:
        width, height = struct.unpack_from(">2I", head, at + 8)
        return height, width
    frame = jpeg_frame(head)
    return None if frame is None else (frame.rows, frame.columns)


def _check_foreign(tif: Any, first: Any) -> None:
    """Refuse what only the program that wrote the file lays out: pages without headers, or values that are coded."""
    for flag, program in _FOREIGN.items():
        if getattr(first, f"is_{flag}", False):
            raise ImageError(
                "unsupported_format",
                f"The TIFF is a file of {program}, whose layout is not read.",
                "Save it as an ImageJ TIFF or OME-TIFF.",
            )
    frames = int((tif.lsm_metadata or {}).get("DimensionTime", 1)) if tif.is_lsm else 1
    if frames > 1:
        raise ImageError(
            "time_series", f"The LSM file is a time series of {frames} frames.", "Give one time point at a time."
        )


def _check_alike(pages: Sequence[Any], numbers: Sequence[int], first: int) -> None:
    """Refuse pages that differ in kind from the first one. Their headers tell, so nothing is decoded for it."""
    wanted, palette = _kind(pages[first]), pages[first].colormap
    for number in numbers:
        if _kind(pages[number]) != wanted:
            raise ImageError(
                "mixed_pages",
                f"Page {number + 1} of the TIFF has another size or pixel type than page {first + 1}.",
                "Save a volume with equal pages, or each picture as its own file (without preview pages).",
            )
        if palette is not None and not np.array_equal(pages[number].colormap, palette):
            raise ImageError(
                "mixed_pages",
                f"Page {number + 1} of the TIFF has another palette than page {first + 1}.",
                "Save all pages with the same palette.",
            )


def _kind(page: Any) -> tuple[Any, ...]:
    return (
        (page.imagelength, page.imagewidth, page.samplesperpixel, page.dtype, page.bitspersample),
        (page.photometric, tuple(page.extrasamples), _orientation(page), page.colormap is None),
    )


def _colour_table(page: Any) -> NDArray[np.uint8]:
    """The palette of a page, (N, 3). Some programs write 8-bit numbers where 16-bit ones belong."""
    table = np.asarray(page.colormap).T
    return (table >> 8 if table.max() > 255 else table).astype(np.uint8)


def _orientation(page: Any) -> int:
    tag = page.tags.get(274)
    return int(tag.value) if tag is not None and tag.value in range(1, 9) else 1


def _upright(samples: NDArray[Any], page: Any) -> NDArray[Any]:
    """Turn (samples, H, W) as the orientation tag says, because viewers do."""
    orientation = _orientation(page)
    if orientation >= 5:
        samples = samples.swapaxes(-1, -2)
    rows, columns = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[
        orientation
    ]
    return samples[:, ::rows, ::columns]
