"""A training as a process of its own: a job file in, events out as JSON lines."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from pathlib import Path

from ml_core.errors import DISK_FULL, MLError, is_full_disk
from ml_core.training.events import Event, Failed, to_line
from ml_core.training.job import TrainingJob
from ml_core.training.run import run

PR_SET_PDEATHSIG = 1


def main(path: Path, begun: float | None = None) -> int:
    """Events on standard output; the word `stop` on standard input ends it in good order, its end at once.

    `begun` (time.monotonic): since when the time budget counts.
    """
    if sys.platform == "linux":  # also when it hangs where no thread of it runs
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    out, lock = sys.stdout, threading.Lock()
    sys.stdout = sys.stderr  # what a library prints must not look like an event
    stop = threading.Event()

    def on_event(event: Event) -> None:
        with lock:
            out.write(to_line(event) + "\n")
            out.flush()

    threading.Thread(target=_listen, args=(stop,), daemon=True).start()
    try:
        run(TrainingJob.read(path), on_event=on_event, should_stop=stop.is_set, begun=begun)
    except MLError as error:
        on_event(Failed(error.code, error.reason, error.cure))
        return 2
    except Exception as error:
        if not is_full_disk(error):
            raise
        on_event(Failed(DISK_FULL, f"The disk is full ({error}).", "Make room and train again."))
        return 2
    return 0


def _listen(stop: threading.Event) -> None:
    for line in sys.stdin:
        if line.strip() == "stop":
            stop.set()
    if not stop.is_set():
        os._exit(3)  # whoever started this is gone; the checkpoint on disk is whole
