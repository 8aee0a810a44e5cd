"""Environment variables that make training on the CPU faster: one for glibc's malloc, one for OpenMP's threads.

malloc: Activations lie in huge pages, which cause fewer misses in the processor's address cache. Memory that one step
frees stays with the process for the next step instead of going back to the kernel page by page. glibc reads
GLIBC_TUNABLES only when a process starts, so the setting needs a new process: code that starts a training passes
`tuned_environment()` to it, and the command line restarts itself.

OpenMP: A thread that waits for the others spins for some microseconds and then sleeps. On a busy machine, threads that
spin for long take the core from the very thread that they wait for, and a step takes many times as long. On an idle
machine, threads that sleep at once make training a quarter slower. The number of spins is a compromise between the two.
"""

from __future__ import annotations

import os
import platform
import sys

VARIABLE = "GLIBC_TUNABLES"
TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=10000000000:glibc.malloc.trim_threshold=100000000000"
SPINS = "5000"
# Marks a process that was already restarted. It prevents an endless restart if GLIBC_TUNABLES does not survive.
RESTARTED = "MEDSEG_MALLOC_TUNED"


def tuned_environment() -> dict[str, str]:
    """Return the environment for a training process: this process's own, plus the settings that nobody has set yet.

    The malloc setting is added only on Linux with glibc, since other C libraries do not read it.
    """
    environment = dict(os.environ)
    environment.setdefault("GOMP_SPINCOUNT", SPINS)
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        environment.setdefault(VARIABLE, TUNABLES)
    return environment


def restart_tuned() -> None:
    """Replace this process by the same command with the tuned environment.

    The process keeps its id and its standard streams. Returns if the process was restarted before or nothing would
    change. Call it before torch is imported, so that the import is not done twice.
    """
    environment = tuned_environment()
    if RESTARTED in environment or environment == dict(os.environ):
        return
    environment[RESTARTED] = "1"
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
