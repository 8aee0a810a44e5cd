"""Takes the pairs of a dataset through three steps at once.

1. Threads read pairs ahead.
2. One thread enters them into the check, one after the other and in order.
3. Threads store them.

Threads are enough, because decoding, compression and waiting for the store happen outside Python's lock. The pairs and
bytes under way are limited: memory does not grow with the archive, and large volumes are read one at a time.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from datasets.models import Sample
from datasets.samples import (
    CheckedSample,
    KnownSample,
    PairFiles,
    UnpackedPair,
    know_pair,
    store_sample,
    unpack_pair,
)
from datasets.thumbnails import ThumbnailWriter
from datasets.versions import ReadKept, as_stored, is_unchanged, know_kept, read_kept
from medseg_site.shared.storage import objects as storage
from ml_core.dataset.checks import DatasetCheck
from ml_core.dataset.pairing import Pair
from ml_core.errors import ImageError
from ml_core.io.containers import ArchiveError, SafeArchive

# A pair of the archive, or a sample of an earlier version that stays.
Item = Pair | Sample
Read = UnpackedPair | ReadKept

# Pairs are read ahead while their files have no more bytes than this. Decoded, they take a few times as much memory.
READ_BYTES = 16 * 2**20
# A remote store takes some milliseconds to answer, so several threads wait for it. More would slow each other down.
STORED_AT_ONCE = 8
# So many pairs may wait, as files in the scratch folder, until they are stored.
WAITING_TO_BE_STORED = 64


class PairPipeline:
    """The threads that read and store pairs. It is a context manager; on leaving, all of them have ended."""

    def __init__(self, archive: SafeArchive | None, folder: Path, prefix: str, compared: int) -> None:
        """`prefix` begins the keys of the samples' objects. `compared` pairs are compared with each other."""
        self._archive, self._folder, self._prefix = archive, folder, prefix
        self._signatures = _SignatureFile(folder / "signatures", compared)
        self._readers = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "read")
        self._writers = ThreadPoolExecutor(STORED_AT_ONCE if storage.is_remote() else 2, "store")
        self._thumbnails = ThumbnailWriter(self._writers, f"{prefix}/thumbnails")
        self._being_stored: deque[Future[CheckedSample]] = deque()
        # Folders are used again, because making a folder takes longer than making a file.
        self._free: SimpleQueue[Path] = SimpleQueue()
        self._folders = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in (self._readers, self._writers):
            pool.shutdown(wait=True, cancel_futures=True)

    def read(self, items: Sequence[Item]) -> Iterator[tuple[int, Item, Callable[[], Read]]]:
        """Yield in order: a position, its item, and a call that returns the item's content or raises its error."""
        ahead: deque[tuple[int, Item, int, Future[Read]]] = deque()
        most = max(2, os.cpu_count() or 1) + 1
        for position, item in enumerate(items):
            size = self._size_of(item)
            while ahead and (len(ahead) >= most or sum(other[2] for other in ahead) + size > READ_BYTES):
                yield self._next(ahead)
            ahead.append((position, item, size, self._begin(item)))
        while ahead:
            yield self._next(ahead)

    def _size_of(self, item: Item) -> int:
        """The size in bytes of an item's files, or an estimate of it where only an open file would tell."""
        if isinstance(item, Sample):
            return math.prod(item.shape)
        assert self._archive is not None
        return sum(self._archive.sizes[name] for name in (*item.image, item.mask))

    def _begin(self, item: Item) -> Future[Read]:
        if isinstance(item, Sample):
            return self._readers.submit(read_kept, item)
        return self._readers.submit(self._read, item, self._take_folder())

    def _next(self, ahead: deque[tuple[int, Item, int, Future[Read]]]) -> tuple[int, Item, Callable[[], Read]]:
        position, item, _, future = ahead.popleft()
        return position, item, future.result

    def _take_folder(self) -> Path:
        try:
            return self._free.get_nowait()
        except Empty:
            folder = self._folder / f"pair-{self._folders}"
            self._folders += 1
            folder.mkdir()
            return folder

    def _read(self, pair: Pair, folder: Path) -> UnpackedPair:
        assert self._archive is not None
        try:
            return unpack_pair(pair, self._archive, folder)
        except (ArchiveError, ImageError):
            self._give_back(folder)
            raise

    def know(self, read: Callable[[], Read], check: DatasetCheck, earlier: Sample | None = None) -> KnownSample:
        """Enter an item into the check. Items have to come in order (see know_pair). Raises the error of a bad pair.

        The result has no files when they are in storage already. That is so for a sample that stays, and for a pair
        whose files are the same as those of the `earlier` sample with its name.
        """
        content = read()
        if isinstance(content, ReadKept):
            kept = know_kept(content, check)
            kept.sample.signature = self._signatures.keep(kept.sample.signature)
            return kept
        try:
            known = know_pair(content, check)
        except ImageError:
            self._give_back(content.folder)
            raise
        known.sample.signature = self._signatures.keep(known.sample.signature)
        if earlier is not None and known.files and is_unchanged(known.files, earlier):
            self._give_back(content.folder)
            return KnownSample(as_stored(earlier, known.sample.signature), known.thumbnail, None)
        return known

    def _give_back(self, folder: Path) -> None:
        """Empty the folder of a pair that is stored or left out, so that another pair can use it."""
        for path in folder.iterdir():
            path.unlink()
        self._free.put(folder)

    def _store(self, sample: CheckedSample, files: PairFiles, position: int) -> CheckedSample:
        store_sample(sample, files, f"{self._prefix}/{position:06d}")
        self._give_back(files.folder)
        return sample

    def store(self, known: KnownSample, position: int) -> list[CheckedSample]:
        """Store a pair in the background, and return the samples that have been stored by now, in order.

        Their thumbnails have a key only after `rest` has ended.
        """
        self._thumbnails.add(known.sample, known.thumbnail)
        if known.files is None:
            stays: Future[CheckedSample] = Future()
            stays.set_result(known.sample)
            self._being_stored.append(stays)
        else:
            self._being_stored.append(self._writers.submit(self._store, known.sample, known.files, position))
        stored = []
        while self._being_stored and (self._being_stored[0].done() or len(self._being_stored) > WAITING_TO_BE_STORED):
            stored.append(self._being_stored.popleft().result())
        return stored

    def rest(self) -> Iterator[CheckedSample]:
        """Yield the samples that were still being stored, in order. After the last one, everything is stored."""
        while self._being_stored:
            yield self._being_stored.popleft().result()
        self._thumbnails.finish()


class _SignatureFile:
    """Keeps signatures in a memory-mapped file. In memory they would take 8 KB a pair, and grow with the archive."""

    def __init__(self, path: Path, most: int) -> None:
        self._path, self._most, self._count = path, most, 0
        self._rows: NDArray[np.float16] | None = None

    def keep(self, signature: NDArray[np.float16]) -> NDArray[np.float16]:
        """Return the same numbers as a row of the file; an empty array beyond `most`, where nothing is compared."""
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
