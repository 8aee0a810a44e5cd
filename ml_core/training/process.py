"""Runs a training as a process of its own, which reads a job file and writes its events as lines of JSON."""

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
    """Run the job file `path`, write its events to standard output, and return the exit code.

    The line `stop` on standard input ends the training with a package of the best weights. The end of standard input
    ends it at once, because then the process that started it is gone. begun: the moment from which the time budget
    counts, by time.monotonic; None for now.
    """
    # The kernel also ends a process whose threads all hang, which therefore cannot notice the end of its input.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    out, lock = sys.stdout, threading.Lock()
    # Whatever a library prints must not be taken for an event.
    sys.stdout = sys.stderr
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
    """Wait for `stop` on standard input, or for its end."""
    for line in sys.stdin:
        if line.strip() == "stop":
            stop.set()
    if not stop.is_set():
        # The process that started this one is gone. Exiting at once is safe: a checkpoint on disk is always whole.
        os._exit(3)
