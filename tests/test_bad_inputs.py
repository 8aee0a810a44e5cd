"""The bad inputs of `benchmarks/bad_inputs.py`, sent to the same views and workers inside this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rest_framework.exceptions import NotFound
from rest_framework.test import APIClient

from benchmarks.bad_inputs import Watch, all_cases, clean, prepare
from benchmarks.bad_inputs_client import Answer, Case, Headers, Platform, as_json
from benchmarks.bad_inputs_site import bad_site
from datasets.models import Dataset
from medseg_site.shared.web.api import ExceptionHandler

MEBIBYTE = 2**20


class ViewClient:
    """Sends a request to the views without a server between; an exception there is a 500, as with one."""

    def __init__(self) -> None:
        self.api = APIClient(raise_request_exception=False)

    def request(self, method: str, path: str, body: bytes, headers: Headers) -> Answer:
        kind = headers.get("Content-Type", "")
        rest = {name: value for name, value in headers.items() if name != "Content-Type"}
        reply: Any = self.api.generic(method, path, body, content_type=kind, headers=rest)  # type: ignore[arg-type]  # bytes too
        content = b"".join(reply.streaming_content) if reply.streaming else reply.content
        reply.close()
        return Answer(reply.status_code, as_json(content))


@pytest.fixture
def platform(transactional_db: None, eager_tasks: None, own_media: Path) -> Platform:
    return Platform(ViewClient())


def wrong_of(platform: Platform, data: Path, cases: list[Case]) -> list[str]:
    watch, wrong = Watch(platform, data), []
    for case in cases:
        answer = case.send(platform)
        wrong += [f"{case.kind}: {case.what}: {problem}: {answer}"[:600] for problem in watch.problems(case, answer)]
    return wrong


@pytest.mark.slow
def test_every_bad_input_gets_its_answer_and_leaves_nothing(platform: Platform, own_media: Path) -> None:
    prepare(platform)
    cases = [case for case in all_cases() if not case.over_http and not case.setting]
    # Every image is read by the same reader in a dataset; that they are refused to segment too is for the command.
    cases = [case for case in cases if not case.what.endswith((", to segment", ", as a reference"))]
    assert len(cases) > 300
    assert wrong_of(platform, own_media.parent, cases) == []
    clean(platform)
    assert [path for path in own_media.rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_servers_that_misbehave_are_refused_with_the_reason(platform: Platform, own_media: Path, settings: Any) -> None:
    settings.MEDSEG_URL_IMPORT_ALLOW_PRIVATE = True
    settings.MEDSEG_MAX_UPLOAD_BYTES = MEBIBYTE
    with bad_site() as platform.address:
        cases = [case for case in all_cases() if case.setting == "private"]
        assert len(cases) >= 10
        assert wrong_of(platform, own_media.parent, cases) == []


def test_a_row_that_is_deleted_while_its_request_waits_is_not_found() -> None:
    context: Any = {}
    answer = ExceptionHandler(Dataset.DoesNotExist(), context).convert_known_exceptions(Dataset.DoesNotExist())
    assert isinstance(answer, NotFound)
