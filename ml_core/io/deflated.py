"""Expand a DICOM file that was compressed as a whole (Deflated Explicit VR Little Endian), piece by piece."""

from __future__ import annotations

import io
import zlib
from typing import BinaryIO

from ml_core.errors import ImageError

_PIECE_BYTES = 1 << 18


class Inflated(io.RawIOBase):
    """The expanded bytes of a raw Deflate stream, as a file that can be read back and forth.

    It expands no more than is read, and `max_bytes` at most: a read beyond them raises ImageError too_large. A damaged
    stream raises zlib.error, and one that is cut off ValueError (pydicom would swallow an EOFError).
    """

    def __init__(self, source: BinaryIO, max_bytes: int) -> None:
        super().__init__()
        self.max_bytes = max_bytes
        self._source, self._inflater = source, zlib.decompressobj(-zlib.MAX_WBITS)
        self._content, self._at = bytearray(), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            self._expand(None)
        self._at = max(0, offset + (0, self._at, len(self._content))[whence])
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = None if size is None or size < 0 else self._at + size
        self._expand(end)
        with memoryview(self._content) as content:
            found = bytes(content[self._at : end])
        self._at += len(found)
        return found

    def _expand(self, end: int | None) -> None:
        """Expand until there are `end` bytes, or all."""
        while not self._inflater.eof and (end is None or len(self._content) < end):
            if len(self._content) > self.max_bytes:
                raise ImageError(
                    "too_large",
                    "The deflated DICOM file expands to more than its header says.",
                    "Convert it to Explicit VR Little Endian, for example with dcmconv +te.",
                )
            packed = self._inflater.unconsumed_tail or self._source.read(_PIECE_BYTES)
            piece = self._inflater.decompress(packed, _PIECE_BYTES)
            if not packed and not piece and not self._inflater.eof:
                raise ValueError("The Deflate stream is truncated.")
            self._content += piece
