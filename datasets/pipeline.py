"""Pairs through three steps at once: read and compared by threads, made known one after the other, stored by threads.

Decoding, compression and the store's answers are waited for outside Python's lock, so threads are enough. What is under way
is bounded, in pairs and in bytes: memory does not grow with the archive, and large volumes are read one at a time.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from datasets.archives import ArchiveError, Pair, SafeArchive
from datasets.samples import CheckedSample, ClassTable, KnownSample, ReadPair, know_pair, read_pair, store_sample
from medseg_site.shared import storage
from ml_core.errors import ImageError
from ml_core.fingerprint import FingerprintBuilder

READ_BYTES = 16 * 2**20  # of files whose pairs are read ahead; decoded, they are some times as much
STORED_AT_ONCE = 16  # a store elsewhere answers each after some milliseconds
WAITING_TO_BE_STORED = 64  # pairs, as files in the scratch folder


class PairPipeline:
    """A context manager. On leaving it, also by an error, no thread reads or stores any more."""

    def __init__(self, archive: SafeArchive, folder: Path, compared: int) -> None:
        """compared: how many pairs' signatures are kept, to be compared when all are read."""
        self._archive, self._folder = archive, folder
        self._signatures = _SignatureFile(folder / "signatures", compared)
        self._readers = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "read")
        self._writers = ThreadPoolExecutor(STORED_AT_ONCE if storage.is_remote() else 2, "store")
        self._being_stored: deque[Future[CheckedSample]] = deque()
        self._free: SimpleQueue[Path] = SimpleQueue()  # folders are used again: making one takes longer than a file
        self._folders = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in (self._readers, self._writers):
            pool.shutdown(wait=True, cancel_futures=True)

    def read(self, pairs: list[Pair]) -> Iterator[tuple[int, Pair, Callable[[], ReadPair]]]:
        """Position, pair, and a call that gives what was read or raises what was wrong with it; in order."""
        ahead: deque[tuple[int, Pair, int, Future[ReadPair]]] = deque()
        most = max(2, os.cpu_count() or 1) + 1
        for position, pair in enumerate(pairs):
            size = sum(self._archive.sizes[name] for name in (*pair.image, pair.mask))
            while ahead and (len(ahead) >= most or sum(item[2] for item in ahead) + size > READ_BYTES):
                yield self._next(ahead)
            ahead.append((position, pair, size, self._readers.submit(self._read, pair, self._take_folder())))
        while ahead:
            yield self._next(ahead)

    def _next(self, ahead: deque[tuple[int, Pair, int, Future[ReadPair]]]) -> tuple[int, Pair, Callable[[], ReadPair]]:
        position, pair, _, future = ahead.popleft()
        return position, pair, future.result

    def _take_folder(self) -> Path:
        try:
            return self._free.get_nowait()
        except Empty:
            folder = self._folder / f"pair-{self._folders}"
            self._folders += 1
            folder.mkdir()
            return folder

    def _read(self, pair: Pair, folder: Path) -> ReadPair:
        try:
            return read_pair(pair, self._archive, folder)
        except (ArchiveError, ImageError):
            self._give_back(folder)
            raise

    def know(
        self, read: Callable[[], ReadPair], classes: ClassTable, builders: dict[int, FingerprintBuilder]
    ) -> KnownSample:
        """In order: see know_pair. Raises what was wrong with the pair."""
        found = read()
        try:
            known = know_pair(found, classes, builders)
        except ImageError:
            self._give_back(found.folder)
            raise
        known.sample.signature = self._signatures.keep(known.sample.signature)
        return known

    def _give_back(self, folder: Path) -> None:
        """The files of a pair that is stored, or not stored after all."""
        for path in folder.iterdir():
            path.unlink()
        self._free.put(folder)

    def _store(self, known: KnownSample, prefix: str) -> CheckedSample:
        sample = store_sample(known, prefix)
        self._give_back(known.folder)
        return sample

    def store(self, known: KnownSample, prefix: str) -> list[CheckedSample]:
        """Store a pair beside all else. Gives those that are stored by now, in order."""
        self._being_stored.append(self._writers.submit(self._store, known, prefix))
        stored = []
        while self._being_stored and (self._being_stored[0].done() or len(self._being_stored) > WAITING_TO_BE_STORED):
            stored.append(self._being_stored.popleft().result())
        return stored

    def rest(self) -> Iterator[CheckedSample]:
        """Those that were still being stored, in order."""
        while self._being_stored:
            yield self._being_stored.popleft().result()


class _SignatureFile:
    """Signatures in a mapped file: 8 KB a case in memory would grow with the archive."""

    def __init__(self, path: Path, most: int) -> None:
        self._path, self._most, self._count = path, most, 0
        self._rows: NDArray[np.float16] | None = None

    def keep(self, signature: NDArray[np.float16]) -> NDArray[np.float16]:
        """The same numbers where they do not count; nothing of those beyond `most`, which are not compared."""
        if self._count == self._most:
            return signature[:0]
        if self._rows is None:
            shape = (self._most, signature.size)
            self._rows = np.asarray(np.memmap(self._path, np.float16, "w+", shape=shape))
        row = self._rows[self._count]
        row[:] = signature.reshape(-1)
        self._count += 1
        kept: NDArray[np.float16] = row.reshape(signature.shape)
        return kept
