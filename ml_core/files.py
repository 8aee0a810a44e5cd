"""Work on many things by threads, in order, with few of them in memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

LARGE_FILE = 8 * 2**20  # bytes; a volume of that size is some hundred megabytes once decoded


def in_order(work: Callable[[Item], Result], items: Iterable[Item], at_once: int) -> Generator[Result, None, None]:
    """`work(item)` of each, begun a few items ahead. What it raises is raised where its result would have come.

    Decoding and decompression do not hold Python's lock, so threads are enough. Who leaves the loop waits for what is under way.
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
    """As many as there are cores for pictures; one for large volumes, of which two would fill the memory."""
    largest = max((size_of(file) for file in files if file.exists()), default=0)
    return 1 if largest > LARGE_FILE else max(1, os.cpu_count() or 1)


def size_of(image: Path) -> int:
    """Bytes of a file, or of a folder's files (a series)."""
    return sum(path.stat().st_size for path in (image.iterdir() if image.is_dir() else [image]))
