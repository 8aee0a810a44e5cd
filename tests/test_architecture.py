"""The laws of ARCHITECTURE.md: the arrows of imports, the size of files and functions, and what only one room may do."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.db import models
from django.urls import get_resolver

from accounts.request_keys import IdempotentPosts
from medseg_site.celery import app as celery_app
from tests.environment import REPOSITORY

MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 80
APPS = ("accounts", "uploads", "datasets", "models_app", "inference")
PRODUCT = ("medseg_site", *APPS, "ml_core")
EXPLAIN_THE_PRODUCT = (
    "medseg_site/shared/jobs/claim.py",
    "datasets/check.py",
    "models_app/training.py",
    "ml_core/training/trainer.py",
    "inference/prediction.py",
)
# Messages that are not the message of a row that was just written: each place says why.
SENDS_BY_ITSELF = {
    "inference/tasks.py",  # turns at a batch, which has no message of its own while its images wait
    "models_app/tasks.py",  # weights that are asked for again in each pass
    "medseg_site/shared/jobs/messages.py",  # which all others call
    "medseg_site/shared/catalogue/chores.py",  # no row stands for them
    "medseg_site/demo.py",  # tasks that look whether the example is ready
}


def product_files() -> Iterator[tuple[str, ast.Module]]:
    for package in PRODUCT:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            if "migrations" not in path.parts:
                yield str(path.relative_to(REPOSITORY)), ast.parse(path.read_text())


def test_imports_run_downwards_only() -> None:
    code = "from importlinter.cli import lint_imports_command as main; main()"
    answer = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout
    assert "0 broken" in answer.stdout


def test_installed_apps_stand_in_the_order_of_the_imports() -> None:
    [layers] = [
        contract["layers"]
        for contract in tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
        if contract["name"].startswith("Between the packages")
    ]
    upwards = [layer for layer in reversed(layers) if layer in APPS]
    assert upwards == list(APPS)
    assert [name for name in settings.INSTALLED_APPS if name in APPS] == upwards


def test_files_stay_small() -> None:
    folders = (*PRODUCT, "scripts", "tests", "benchmarks", "templates")
    files = [
        path
        for folder in folders
        for path in (REPOSITORY / folder).rglob("*")
        if path.suffix in {".py", ".js", ".html"}
    ]
    assert len(files) > 100
    lengths = {str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_functions_stay_small() -> None:
    too_long = {
        node.name: f"{name}: {length} lines"
        for name, tree in product_files()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert too_long == {}


def _writes_status(node: ast.AST) -> bool:
    """`rows.update(status=…)`, or `row.status = …`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "update":
        return any(keyword.arg == "status" for keyword in node.keywords)
    targets = node.targets if isinstance(node, ast.Assign) else []
    return any(isinstance(target, ast.Attribute) and target.attr == "status" for target in targets)


def test_only_jobs_writes_a_status() -> None:
    writers = {name for name, tree in product_files() if any(_writes_status(node) for node in ast.walk(tree))}
    elsewhere = {name for name in writers if not name.startswith("medseg_site/shared/jobs/")}
    assert elsewhere == set()
    assert "medseg_site/shared/jobs/claim.py" in writers


def test_messages_are_sent_on_commit() -> None:
    senders = {
        name
        for name, tree in product_files()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in {"delay", "apply_async", "send_task"}
    }
    assert senders == SENDS_BY_ITSELF


def test_every_task_has_both_time_limits() -> None:
    celery_app.loader.import_default_modules()
    tasks = [task for name, task in celery_app.tasks.items() if name.split(".")[0] in {*APPS, "medseg_site"}]
    assert len(tasks) > 5
    assert [task.name for task in tasks if not (task.soft_time_limit and task.time_limit)] == []


def test_every_foreign_key_names_its_reverse() -> None:
    keys: list[Any] = [
        field
        for model in apps.get_models()
        if model._meta.app_label in APPS
        for field in model._meta.get_fields()
        if isinstance(field, models.ForeignKey | models.ManyToManyField)
    ]
    assert len(keys) > 5
    assert [str(field) for field in keys if not field._related_name] == []


@pytest.mark.parametrize("name", EXPLAIN_THE_PRODUCT)
def test_the_files_that_explain_the_product_begin_with_an_explanation(name: str) -> None:
    assert ast.get_docstring(ast.parse(Path(REPOSITORY / name).read_text()))


def test_every_post_of_the_api_may_be_sent_again() -> None:
    callbacks = [
        pattern.callback
        for resolver in get_resolver().url_patterns
        for pattern in getattr(resolver, "url_patterns", [resolver])
    ]
    views = {
        view.cls
        for view in callbacks
        if "post" in getattr(view, "actions", {}) or hasattr(getattr(view, "cls", None), "post")
    }
    assert {view.__name__ for view in views} >= {"DatasetViewSet", "ModelViewSet", "InferenceViewSet", "UploadViewSet"}
    assert [view for view in views if not issubclass(view, IdempotentPosts)] == []
