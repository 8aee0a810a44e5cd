"""Prints name, version and licence of every installed Python and JavaScript package, from the package's metadata."""

from __future__ import annotations

import json
from importlib.metadata import Distribution, distributions
from pathlib import Path

MODULES = Path(__file__).parents[1] / "node_modules"


def licence(package: Distribution) -> str:
    """The SPDX expression of a package, or its classifiers, or the first line of its licence field, or "unknown"."""
    metadata = package.metadata
    classifiers = [line for line in metadata.get_all("Classifier") or [] if line.startswith("License ::")]
    texts = (
        *(metadata.get_all("License-Expression") or []),
        ", ".join(line.rpartition(" :: ")[2] for line in classifiers),
        *(metadata.get_all("License") or []),
    )
    return next((text.strip().splitlines()[0] for text in texts if text.strip()), "unknown")


def main() -> None:
    rows = {(package.name, package.version, licence(package)) for package in distributions()}
    for path in (*MODULES.glob("*/package.json"), *MODULES.glob("@*/*/package.json")):
        package = json.loads(path.read_text())
        rows.add((package["name"], package["version"], package.get("license", "unknown")))
    for name, version, text in sorted(rows, key=lambda row: row[0].lower()):
        print(f"{name:40} {version:20} {text}")


if __name__ == "__main__":
    main()
