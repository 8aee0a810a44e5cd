"""THIRD_PARTY_NOTICES.md names what is required, and nothing that is installed is under the GPL."""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError, distribution

from scripts.licences import licence
from tests.environment import REPOSITORY


def lines(name: str) -> list[str]:
    return [line for line in (REPOSITORY / name).read_text().splitlines() if line and line[0] not in " #"]


def test_the_notices_name_every_direct_dependency_with_its_range() -> None:
    required = {}
    for line in lines("requirements.in"):
        name, bounds = re.fullmatch(r"([\w.-]+(?:\[[\w,-]+\])?)(.*)", line).groups()  # type: ignore[union-attr]  # always
        required[name] = bounds or "any"
    package = json.loads((REPOSITORY / "package.json").read_text())
    required |= package["dependencies"] | package["devDependencies"]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in lines("THIRD_PARTY_NOTICES.md") if line[0] == "|"
    ]
    named = {row[0]: row[1] for row in rows if len(row) == 4 and row[0] not in ("package", "---")}
    assert named == required


def test_no_pinned_package_is_under_the_gpl() -> None:
    known = 0
    for line in lines("requirements.txt"):
        name = line.split("==")[0]
        try:
            text = licence(distribution(name))
        except PackageNotFoundError:  # of another system
            continue
        known += text != "unknown"
        assert not re.search(r"AGPL|Affero|(?<!L)GPL|(?<!Lesser )General Public", text), f"{name}: {text}"
    assert known > 150
