"""What the decoders of PNG, JPEG, BMP and TIFF return, before it becomes an image or a label map."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

WHAT, CURE = "image file", "Open it in an image program and save it again as PNG or TIFF."


@dataclass(frozen=True)
class Pixels:
    """The decoded pixels of a file."""

    array: NDArray[Any]
    """(C, H, W) or (C, D, H, W), in the dtype of the file."""
    is_rgb: bool
    """The channels are red, green and blue."""
    palette: list[str] | None
    """The colour "#rrggbb" of each palette index; None if `array` holds no indices."""
    lossy: bool
    """The pixels were compressed with loss (JPEG)."""
    has_alpha: bool
    """The file has an alpha channel that is not the same everywhere. It is not in `array`."""
    is_alpha: bool = False
    """`array` is the alpha channel of a mask whose colour is the same everywhere."""


def varies(channel: NDArray[Any]) -> bool:
    """Whether a channel holds more than one value. One that is the same everywhere says nothing."""
    return bool((channel != channel.flat[0]).any())


def hex_colours(table: NDArray[np.uint8]) -> list[str]:
    """Write a palette (N, 3) as "#rrggbb"."""
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in table.tolist()]


class JpegFrame(NamedTuple):
    """What the header of a JPEG stream says."""

    bits: int
    """Of one channel."""
    rows: int
    columns: int


def jpeg_frame(head: bytes) -> JpegFrame | None:
    """Read the frame header in the first bytes of a JPEG stream; None if they hold none."""
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return JpegFrame(*struct.unpack_from(">B2H", head, at + 4))
        # A marker may be padded with bytes of FF.
        at += 1 if marker == 0xFF else 2 + int(struct.unpack_from(">H", head, at + 2)[0])
    return None
