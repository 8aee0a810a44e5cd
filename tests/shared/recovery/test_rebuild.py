"""The database again from storage alone: a diff of everything that the API says, before and after."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.files.storage import default_storage
from django.core.management import CommandError, call_command

from accounts.models import Membership, Project
from accounts.services import personal_project
from datasets.models import Dataset, DatasetClass, Sample
from inference import prediction
from inference.models import InferenceBatch, InferenceResult
from medseg_site.shared.base.local_user import local_user
from medseg_site.shared.catalogue import manifests
from medseg_site.shared.catalogue.declarations import stored_models
from medseg_site.shared.jobs import messages
from medseg_site.shared.jobs.reaper import reap
from medseg_site.shared.recovery.rebuild import rebuild
from medseg_site.shared.storage import objects as storage
from models_app.models import Epoch, SegmentationModel
from tests.factories import project_of
from tests.problems import find_problems
from tests.shared.conftest import Filled

# Each test fills a platform first.
pytestmark = pytest.mark.slow

Answers = Callable[[], dict[str, Any]]


def rows_of_any_kind() -> int:
    counts: list[int] = [model._default_manager.count() for model in [*stored_models(), Project]]
    return User.objects.count() + sum(counts)


def lose_the_database() -> None:
    call_command("flush", interactive=False, verbosity=0)
    assert not rows_of_any_kind()


def all_rows() -> dict[str, list[dict[str, Any]]]:
    """Every column of every row but those that say who is at work."""
    tables = (Dataset, DatasetClass, Sample, SegmentationModel, Epoch, InferenceBatch, InferenceResult)
    return {
        table._meta.db_table: [
            {name: value for name, value in row.items() if name not in manifests.LEFT_OUT | {"created_by_id"}}
            for row in table._default_manager.order_by("pk").values()
        ]
        for table in tables
    }


def test_everything_comes_back_as_it_was(filled: Filled, answers: Answers) -> None:
    # What is being trained comes back as queued; all else has to be the same to the last digit.
    SegmentationModel.objects.filter(pk=filled.working.pk).update(
        status="queued", claim_token=None, attempt=0, started_at=None, timeline=filled.working.timeline[:1]
    )
    said, rows, project = answers(), all_rows(), Project.objects.values().get()
    assert len(said) == 4 + (2 * 2) + (4 * 2) + 6 + 1
    assert {row["status"] for row in rows["inference_results"]} == {"completed", "failed", "queued"}
    lose_the_database()
    report = rebuild()
    assert (report.skipped, report.notes) == ([], [])
    assert dict(report.restored) == {"datasets": 2, "models": 4, "inference_batches": 1, "inference_results": 6}
    assert all_rows() == rows
    assert answers() == said
    assert {row.created_by.username for row in InferenceResult.objects.all() if row.created_by} == {"local"}
    assert Project.objects.values().get() == {**project, "personal_of_id": User.objects.get().pk}
    assert find_problems() == []

    again = rebuild()
    assert (dict(again.restored), again.skipped) == ({}, [])
    assert dict(again.present) == dict(report.restored)
    assert all_rows() == rows
    new = DatasetClass.objects.create(dataset=filled.ready, value=7, name="new", color="#000000")
    assert new.pk > max(row["id"] for row in rows["classes"])


def test_what_was_queued_or_worked_on_goes_on(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_the_database()
    report = rebuild()
    assert dict(+report.queued) == {"models": 1, "inference_results": 1}
    model = SegmentationModel.objects.get(pk=filled.working.pk)
    assert (model.status, model.claim_token, model.requested["epochs"]) == ("queued", None, 3)
    sent: list[int] = []
    monkeypatch.setattr(messages, "call", lambda task, pk: sent.append(pk))
    reap(InferenceResult)
    assert sent == [filled.queued.pk], "the reaper sends its message again"
    prediction.predict(filled.queued.pk)
    row = InferenceResult.objects.get(pk=filled.queued.pk)
    assert (row.status, row.error) == ("completed", None)
    assert find_problems() == []


def test_a_dry_run_tells_the_same_and_writes_nothing(filled: Filled) -> None:
    lose_the_database()
    told = rebuild(dry_run=True)
    assert not rows_of_any_kind()
    assert rebuild().restored == told.restored


@pytest.mark.parametrize("media", ["local"], indirect=True)
def test_what_cannot_be_restored_is_named_with_its_cure_and_costs_nothing_else(filled: Filled) -> None:
    model, dataset = f"models/{filled.completed.uuid}", f"datasets/{filled.ready.uuid}"
    batch = f"batches/{filled.batch.uuid}"
    storage.store_bytes(f"{model}/manifest.json", b'{"manifest": 1, "row": {"id"')
    storage.store_bytes(f"{dataset}/samples.jsonl.gz", b"\x1f\x8b damaged")
    default_storage.delete(f"{batch}/manifest.json")
    storage.store_bytes("datasets/notes/readme.txt", b"x")
    inference = InferenceResult.objects.filter(batch=None).order_by("pk")[0]
    other = InferenceResult.objects.filter(batch=None).order_by("pk")[1]
    document = manifests.read(f"inferences/{other.uuid}/manifest.json")
    document["row"]["id"] = inference.pk
    storage.store_json(f"inferences/{other.uuid}/manifest.json", document)
    of_batch = set(filled.batch.inferences.values_list("uuid", flat=True))
    lose_the_database()
    out = io.StringIO()
    with pytest.raises(CommandError, match="could not be restored"):
        call_command("rebuild_catalog", stdout=out)
    told = out.getvalue()
    for words in (
        f"Skipped: {model}: manifest.json is damaged. Put the manifest back",
        f"Skipped: {dataset}: samples.jsonl.gz is damaged. Put the file back",
        "Skipped: datasets/notes: it is not named by a uuid",
        *(f"Skipped: inferences/{uuid}: what it belongs to is not there ({batch})" for uuid in of_batch),
    ):
        assert words in told
    # One of the two that claim the same number is there, the other is not and is named.
    assert told.count(f"the number {inference.pk} belongs to another inference") == 1
    assert InferenceResult.objects.count() == 3
    assert set(InferenceResult.objects.values_list("model", flat=True)) == {None}
    assert f"Not as it was: inferences/{filled.queued.uuid}: its model could not be restored" in told
    assert Dataset.objects.count() == 1
    assert Sample.objects.count() == 0, "half a dataset is none"


@pytest.mark.parametrize("media", ["local"], indirect=True)
def test_the_owner_comes_back_by_name(filled: Filled, settings: Any) -> None:
    settings.MEDSEG_SINGLE_USER = False
    ada = User.objects.create_user("ada", password="secret")
    key = f"datasets/{filled.ready.uuid}/manifest.json"
    Dataset.objects.filter(pk=filled.ready.pk).update(created_by=ada)
    manifests.rewrite(Dataset.objects.get(pk=filled.ready.pk))
    text = default_storage.open(key).read().decode()
    assert json.loads(text)["row"]["created_by"] == "ada"
    assert "secret" not in text
    lose_the_database()
    rebuild()
    found = Dataset.objects.get(pk=filled.ready.pk).created_by
    assert found is not None
    assert (found.username, found.has_usable_password(), found.is_superuser) == ("ada", False, False)


@pytest.mark.parametrize("media", ["local"], indirect=True)
def test_numbers_are_not_given_twice_after_a_rebuild(filled: Filled) -> None:
    highest = InferenceResult.objects.order_by("-pk")[0].pk
    lose_the_database()
    rebuild()
    assert InferenceResult.objects.create(project=project_of(), status="queued", image_name="x").pk > highest


@pytest.mark.parametrize("media", ["local"], indirect=True)
def test_a_shared_project_comes_back_with_its_number_and_without_members(filled: Filled, settings: Any) -> None:
    settings.MEDSEG_SINGLE_USER = False
    ada, shared = User.objects.create_user("ada"), Project.objects.create(pk=77, name="Retina study")
    Membership.objects.create(project=shared, user=ada, role="member")
    Dataset.objects.filter(pk=filled.ready.pk).update(project=shared)
    manifests.rewrite(Dataset.objects.get(pk=filled.ready.pk))
    said = Project.objects.values().get(pk=77)
    lose_the_database()
    rebuild()
    assert Project.objects.values().get(pk=77) == said
    assert Dataset.objects.get(pk=filled.ready.pk).project.name == "Retina study"
    assert not Membership.objects.exists()
    assert Project.objects.create(name="next").pk > 77


@pytest.mark.parametrize("media", ["local"], indirect=True)
def test_a_project_with_another_name_makes_no_manifest_stale(filled: Filled) -> None:
    Project.objects.update(name="another name")
    assert find_problems() == []
    Dataset.objects.filter(pk=filled.ready.pk).update(project=Project.objects.create(name="another project"))
    [problem] = find_problems()
    assert "It says otherwise than the row: project." in problem.detail


@pytest.mark.parametrize("media", ["local"], indirect=True)
def test_rows_go_into_the_personal_project_that_their_user_has_by_now(filled: Filled, user: Any) -> None:
    lose_the_database()
    shared, own = Project.objects.create(name="took the number"), personal_project(local_user())
    report = rebuild()
    assert report.skipped == []
    assert [note.reason for note in report.notes] == ["local takes the place of its project"]
    assert set(Dataset.objects.values_list("project", flat=True)) == {own.pk}
    assert Project.objects.count() == 2
    assert not shared.dataset_rows.exists()
    call_command("verify_storage", repair=True, stdout=io.StringIO())
    assert find_problems() == []


@pytest.mark.parametrize("media", ["local"], indirect=True)
def test_a_project_whose_number_is_taken_gets_another(filled: Filled) -> None:
    before = Project.objects.get()
    lose_the_database()
    Project.objects.create(pk=before.pk, name="took the number")
    rebuild()
    found = Dataset.objects.get(pk=filled.ready.pk).project
    assert (found.uuid, found.name) == (before.uuid, "local")
    assert found.pk != before.pk
