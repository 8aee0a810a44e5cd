"""Runs a command and measures the memory of its process tree."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from time import time

import psutil

# Seconds between two samples of RSS.
EVERY = 0.5
# PSS is measured at every tenth sample only, because the kernel walks through all pages for it.
PSS_EVERY = 10


def run(command: list[str], log: Path, threads: int) -> tuple[int, list[tuple[float, int, int]]]:
    """Run a command with its output in `log`: (exit status, samples of (Unix time, RSS, PSS)).

    Memory is in bytes, summed over the process tree. RSS counts a shared page once for each process, PSS only once in
    all. PSS is 0 in samples that do not measure it.
    """
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    samples: list[tuple[float, int, int]] = []
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env={**os.environ, **limits})
        while True:
            try:
                return process.wait(EVERY), samples
            except subprocess.TimeoutExpired:
                samples.append((time(), *memory(process.pid, pss=len(samples) % PSS_EVERY == 0)))


def memory(pid: int, *, pss: bool) -> tuple[int, int]:
    """(RSS, PSS) of a process and its descendants, in bytes. Both are 0 if it has ended; PSS is 0 without `pss`."""
    resident = proportional = 0
    try:
        top = psutil.Process(pid)
        tree = [top, *top.children(recursive=True)]
    except psutil.Error:
        return 0, 0
    for process in tree:
        try:
            resident += process.memory_info().rss
            proportional += process.memory_full_info().pss if pss else 0
        except psutil.Error:
            continue
    return resident, proportional
