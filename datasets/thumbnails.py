"""Thumbnails of some samples in one object, JPEG after JPEG (Motion JPEG): a store is waited for, and paid, by the object."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Executor, Future

from datasets.samples import CheckedSample
from medseg_site.shared import storage

TOGETHER = 64  # some 500 KB


class ThumbnailWriter:
    """Gathers thumbnails and stores them by `pool`. One thread calls it, in the samples' order: the same samples give the same objects."""

    def __init__(self, pool: Executor, prefix: str) -> None:
        self._pool, self._prefix = pool, prefix
        self._gathered = bytearray()
        self._key, self._count = "", 0
        self._being_stored: deque[Future[storage.StoredObject]] = deque()

    def add(self, sample: CheckedSample, jpeg: bytes) -> None:
        """Tells the sample where its thumbnail will be. Raises what kept an earlier object from being stored."""
        self._key = f"{self._prefix}/{self._count // TOGETHER:06d}.mjpeg"
        sample.thumbnail_key = self._key
        sample.thumbnail_offset, sample.thumbnail_size = len(self._gathered), len(jpeg)
        self._gathered += jpeg
        self._count += 1
        if self._count % TOGETHER == 0:
            self._store()
        while self._being_stored and self._being_stored[0].done():
            self._being_stored.popleft().result()

    def _store(self) -> None:
        self._being_stored.append(self._pool.submit(storage.store_bytes, self._key, bytes(self._gathered)))
        self._gathered.clear()

    def finish(self) -> None:
        """Returns when all of them are stored; raises what kept one from it."""
        if self._gathered:
            self._store()
        while self._being_stored:
            self._being_stored.popleft().result()
