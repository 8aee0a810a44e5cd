"""The arrows of ARCHITECTURE.md, and the size of files, as law."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.environment import REPOSITORY

MOST_LINES = 400
PRODUCT = (
    "medseg_site/shared/jobs.py",
    "models_app/services.py",
    "models_app/training.py",
    "ml_core/trainer.py",
    "inference/prediction.py",
)


def test_imports_run_downwards_only() -> None:
    code = "from importlinter.cli import lint_imports_command as main; main()"
    answer = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout
    assert "0 broken" in answer.stdout


def test_files_stay_small() -> None:
    folders = (
        "medseg_site",
        "uploads",
        "datasets",
        "models_app",
        "inference",
        "ml_core",
        "scripts",
        "tests",
        "benchmarks",
        "templates",
    )
    files = [
        path
        for folder in folders
        for path in (REPOSITORY / folder).rglob("*")
        if path.suffix in {".py", ".js", ".html"}
    ]
    assert len(files) > 100
    long = {
        str(path.relative_to(REPOSITORY)): count
        for path in files
        if (count := len(path.read_text().splitlines())) > MOST_LINES
    }
    assert long == {}


@pytest.mark.parametrize("name", PRODUCT)
def test_the_files_that_explain_the_product_are_there(name: str) -> None:
    assert (REPOSITORY / name).read_text().startswith('"""')
