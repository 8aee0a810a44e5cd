"""Run work on many items in threads: results come in order, and only a few are in memory at once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# In bytes, as stored. A compressed volume of this size takes some hundred megabytes once decoded.
LARGE_FILE = 8 * 2**20


def in_order(work: Callable[[Item], Result], items: Iterable[Item], at_once: int) -> Generator[Result, None, None]:
    """Yield `work(item)` for each item, in the order of the items.

    `at_once` threads work ahead of the caller. An error in `work` is raised in place of that item's result. A caller
    that leaves the loop early waits for the items already being worked on; the others are cancelled. Threads are
    enough, because decoding and decompression release Python's global lock.
    """
    ahead: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) > at_once:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def threads_for(files: Iterable[Path]) -> int:
    """Number of threads that may read these files at once: one per core, or 1 if any file is a large volume.

    Two large volumes decoded at the same time could fill the memory.
    """
    largest = max((size_of(file) for file in files if file.exists()), default=0)
    return 1 if largest > LARGE_FILE else max(1, os.cpu_count() or 1)


def size_of(image: Path) -> int:
    """Size in bytes of a file, or of all files in the folder of a DICOM series."""
    return sum(path.stat().st_size for path in (image.iterdir() if image.is_dir() else [image]))
