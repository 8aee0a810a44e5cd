"""Thumbnails of many samples in one object, JPEG after JPEG (Motion JPEG). Every object costs time and money."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Executor, Future

from datasets.samples import CheckedSample
from medseg_site.shared.storage import objects as storage

# So many thumbnails lie in one object. Together they take about 500 KB.
TOGETHER = 64


class ThumbnailWriter:
    """Collects thumbnails and stores them in the threads of `pool`. Only one thread may call it, in the samples' order.

    The key of an object holds the checksum of its content. A check that lost its claim and still writes can therefore
    not change what another check wrote.
    """

    def __init__(self, pool: Executor, prefix: str) -> None:
        self._pool, self._prefix = pool, prefix
        self._content = bytearray()
        self._gathered: list[CheckedSample] = []
        self._objects = 0
        self._being_stored: deque[Future[storage.StoredObject]] = deque()

    def add(self, sample: CheckedSample, jpeg: bytes) -> None:
        """Add the thumbnail of the next sample. The sample knows its key after `finish` at the latest.

        Raises the error of an earlier object that could not be stored.
        """
        sample.thumbnail_offset, sample.thumbnail_size = len(self._content), len(jpeg)
        self._content += jpeg
        self._gathered.append(sample)
        if len(self._gathered) == TOGETHER:
            self._store()
        while self._being_stored and self._being_stored[0].done():
            self._being_stored.popleft().result()

    def _store(self) -> None:
        content = bytes(self._content)
        key = f"{self._prefix}/{self._objects:06d}-{hashlib.sha256(content).hexdigest()[:16]}.mjpeg"
        for sample in self._gathered:
            sample.thumbnail_key = key
        self._being_stored.append(self._pool.submit(storage.store_bytes, key, content))
        self._objects += 1
        self._gathered.clear()
        self._content.clear()

    def finish(self) -> None:
        """Wait until all objects are stored. Raises the error of one that could not be stored."""
        if self._gathered:
            self._store()
        while self._being_stored:
            self._being_stored.popleft().result()
