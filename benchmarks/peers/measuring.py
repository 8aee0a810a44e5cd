"""Run a command and watch the memory of its process tree."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from time import time

import psutil

EVERY = 0.5  # seconds between two samples of RSS
PSS_EVERY = 10  # samples; the kernel walks all pages for one


def run(command: list[str], log: Path, threads: int) -> tuple[int, list[tuple[float, int, int]]]:
    """(exit status, samples of (Unix time, RSS, PSS) in bytes, summed over the tree); its output goes to `log`.

    RSS counts a page once for each process that has it, PSS once in all; PSS is 0 in most samples, since it takes time.
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
    """(RSS, PSS) of a process and all below it, in bytes; 0 where it has ended, and for PSS where it is not wanted."""
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
