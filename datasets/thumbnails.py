"""Thumbnails of some samples in one object, JPEG after JPEG (Motion JPEG): a store is waited for, and paid, by the object."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Executor, Future

from datasets.samples import CheckedSample
from medseg_site.shared.storage import objects as storage

TOGETHER = 64  # some 500 KB


class ThumbnailWriter:
    """Gathers thumbnails and stores them by `pool`. One thread calls it, in the samples' order.

    An object is named by its content: a check that lost its claim and still writes cannot change what another one wrote.
    """

    def __init__(self, pool: Executor, prefix: str) -> None:
        self._pool, self._prefix = pool, prefix
        self._content = bytearray()
        self._gathered: list[CheckedSample] = []
        self._objects = 0
        self._being_stored: deque[Future[storage.StoredObject]] = deque()

    def add(self, sample: CheckedSample, jpeg: bytes) -> None:
        """The sample is told where its thumbnail lies, by `finish` at the latest. Raises what kept an earlier object from being stored."""
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
        """Returns when all of them are stored; raises what kept one from it."""
        if self._gathered:
            self._store()
        while self._being_stored:
            self._being_stored.popleft().result()
