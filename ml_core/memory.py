"""Settings of the process under which a training on the CPU is quicker: of glibc's malloc, and of OpenMP's threads.

malloc: activations come from huge pages (fewer misses in the translation buffer), and memory freed by one step stays with the process for
the next instead of going back to the kernel page by page. glibc reads GLIBC_TUNABLES when a process starts, so that it takes a new
process: whoever starts a training passes `tuned_environment()` on, and the command line starts itself again.

OpenMP: a thread that waits for the others spins for some microseconds and then sleeps. Where other processes want the cores too,
threads that spin long keep the one that they wait for from running, and a step takes many times as long; threads that sleep at once
cost a quarter of the speed on a machine that does nothing else.
"""

from __future__ import annotations

import os
import platform
import sys

VARIABLE = "GLIBC_TUNABLES"
TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=10000000000:glibc.malloc.trim_threshold=100000000000"
SPINS = "5000"
RESTARTED = "MEDSEG_MALLOC_TUNED"  # says that this process is the second one, whatever became of the other variable


def tuned_environment() -> dict[str, str]:
    """The environment for a training process: this one's, with the tunables where glibc is used and nobody else set them."""
    environment = dict(os.environ)
    environment.setdefault("GOMP_SPINCOUNT", SPINS)
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        environment.setdefault(VARIABLE, TUNABLES)
    return environment


def restart_tuned() -> None:
    """Start this very command again under the tunables; returns where that is done already or changes nothing.

    Call it before torch is imported. The process keeps its id and its standard streams.
    """
    environment = tuned_environment()
    if RESTARTED in environment or environment == dict(os.environ):
        return
    environment[RESTARTED] = "1"
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
