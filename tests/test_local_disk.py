"""What a machine keeps for itself goes when its row has gone, wherever it was deleted; services say whether they answer."""

from __future__ import annotations

import uuid

import pytest
from django.core.management import call_command

from medseg_site.local_disk import sweep
from medseg_site.shared.storage import cache, scratch
from medseg_site.shared.web import health
from tests.factories import CompletedModelFactory, DatasetFactory, ModelFactory

pytestmark = pytest.mark.django_db


def test_a_sweep_keeps_what_rows_need() -> None:
    dataset, waiting, done = DatasetFactory.create(), ModelFactory.create(), CompletedModelFactory.create()
    kept = [cache.decoded_folder(dataset.uuid), scratch.training_folder(waiting.uuid)]
    gone = [
        cache.decoded_folder(uuid.uuid4()),
        scratch.training_folder(uuid.uuid4()),
        scratch.training_folder(done.uuid),  # completed on another machine
    ]
    stranger = scratch.training_folder(uuid.uuid4()).parent / "notes"
    for folder in [*kept, *gone, stranger]:
        folder.mkdir(parents=True)
        (folder / "file").write_text("something")
    sweep()
    assert [folder.exists() for folder in [*kept, stranger]] == [True] * 3
    assert [folder.exists() for folder in gone] == [False] * 3


def test_services_names_what_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("services")

    def broken() -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setitem(health.PARTS, "storage", broken)
    with pytest.raises(SystemExit):
        call_command("services")
    assert "storage: ConnectionError: nobody there" in capsys.readouterr().err
