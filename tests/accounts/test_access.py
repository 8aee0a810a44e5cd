"""Who sees and may do what, by their role in the project of a row; and in whose project new rows are."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.db import IntegrityError, transaction
from django.db.models import ProtectedError, QuerySet
from rest_framework.test import APIClient

from accounts.access import Action, may, visible_to
from accounts.models import AuditEvent, Membership, Project
from accounts.services import personal_project
from datasets import services as datasets
from datasets.models import Dataset
from inference import services as inferences
from medseg_site.shared.base.errors import MedSegError
from medseg_site.shared.base.local_user import local_user
from models_app import services as trainings
from tests.accounts.changes import CHANGES, archive, picture
from tests.accounts.conftest import shared_project
from tests.factories import CompletedModelFactory, DatasetFactory, InferenceBatchFactory
from uploads import services as uploads

pytestmark = pytest.mark.django_db

MAY: dict[str | None, set[str]] = {
    None: set(),
    "viewer": {"view"},
    "annotator": {"view", "annotate"},
    "member": {"view", "annotate", "change", "delete"},
    "owner": {"view", "annotate", "change", "delete", "manage"},
}


@pytest.mark.parametrize("role", MAY)
def test_a_role_says_what_its_user_sees_and_may_do(anna: User, role: str | None) -> None:
    project = shared_project(**({role: anna} if role else {}))
    row = DatasetFactory.create(project=project)
    assert {action for action in get_args(Action) if may(anna, action, row)} == MAY[role]
    assert may(anna, "manage", project) == (role == "owner")
    assert list(Dataset.objects.visible_to(anna)) == ([row] if role else [])


def test_everybody_owns_their_personal_project_and_sees_no_other(anna: User, bert: User) -> None:
    own, theirs = DatasetFactory.create(created_by=anna), DatasetFactory.create(created_by=bert)
    assert list(Dataset.objects.visible_to(anna)) == [own]
    assert may(anna, "manage", own)
    assert not may(anna, "view", theirs)
    shared = DatasetFactory.create(project=shared_project(member=anna))
    assert set(visible_to(Dataset.objects.all(), anna)) == {own, shared}


def test_nobody_sees_nothing_and_a_superuser_everything(several_users: None) -> None:
    row = DatasetFactory.create(project=shared_project())
    for nobody in (None, AnonymousUser()):
        assert not visible_to(Dataset.objects.all(), nobody).exists()
        assert not may(nobody, "view", row)
    assert list(Dataset.objects.visible_to(local_user())) == [row]
    assert may(local_user(), "manage", row)


def test_the_single_user_sees_everything() -> None:
    row = DatasetFactory.create(project=shared_project())
    somebody = User.objects.create_user("somebody")
    assert list(Dataset.objects.visible_to(somebody)) == [row]
    assert may(somebody, "delete", row)


@pytest.mark.parametrize("name", CHANGES)
def test_a_viewer_changes_nothing(anna: User, name: str) -> None:
    change = CHANGES[name]
    row = change.make(shared_project(viewer=anna))
    before = type(row).objects.values().get(pk=row.pk)
    with pytest.raises(MedSegError, match="Ask an owner") as refused:
        change.do(anna, row)
    assert refused.value.http_status == 403
    assert type(row).objects.values().get(pk=row.pk) == before
    assert not AuditEvent.objects.exists()


def test_the_api_answers_403_to_a_viewer_and_404_to_others(anna: User, bert: User) -> None:
    row = DatasetFactory.create(project=shared_project(viewer=anna))
    for user, read, deleted in ((anna, 200, 403), (bert, 404, 404)):
        client = APIClient()
        client.force_authenticate(user)
        assert client.get(f"/api/v1/datasets/{row.pk}/").status_code == read
        answer = client.delete(f"/api/v1/datasets/{row.pk}/")
        assert answer.status_code == deleted
    assert Dataset.objects.get() == row


@pytest.mark.parametrize(
    ("path", "table"),
    [
        ("models/?dataset=", DatasetFactory),
        ("inferences/?model=", CompletedModelFactory),
        ("inferences/?batch=", InferenceBatchFactory),
        ("inference-batches/?model=", CompletedModelFactory),
    ],
)
def test_a_filter_tells_nothing_of_rows_of_other_projects(anna: User, bert: User, path: str, table: Any) -> None:
    client = APIClient()
    client.force_authenticate(anna)
    assert client.get(f"/api/v1/{path}{table.create(created_by=anna).pk}").status_code == 200
    theirs = client.get(f"/api/v1/{path}{table.create(created_by=bert).pk}")
    nobodys = client.get(f"/api/v1/{path}987654")
    assert (theirs.status_code, nobodys.status_code) == (400, 400)
    assert theirs.json()["errors"][0]["detail"] == nobodys.json()["errors"][0]["detail"]


def test_of_two_first_requests_at_once_the_later_gets_the_others_project(
    anna: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, get, looks = personal_project(anna), QuerySet.get, [0]

    def not_there_at_first(self: Any, *args: Any, **conditions: Any) -> Any:
        looks[0] += 1
        if looks[0] == 1:
            raise Project.DoesNotExist
        return get(self, *args, **conditions)

    monkeypatch.setattr(QuerySet, "get", not_there_at_first)
    assert personal_project(anna) == project
    assert looks[0] == 2
    assert Project.objects.count() == 1


def test_rows_stay_when_their_user_goes(anna: User) -> None:
    row = DatasetFactory.create(created_by=anna)
    anna.delete()
    row = Dataset.objects.get(pk=row.pk)
    assert (row.project.name, row.project.personal_of, row.created_by) == ("anna", None, None)
    with pytest.raises(ProtectedError):
        row.project.delete()


def test_a_membership_has_a_known_role_and_is_the_only_one(anna: User, bert: User) -> None:
    project = shared_project(viewer=anna)
    for user, role in ((anna, "owner"), (bert, "king")):
        with pytest.raises(IntegrityError), transaction.atomic():
            Membership.objects.create(project=project, user=user, role=role)


def test_new_rows_are_in_the_project_of_what_they_are_made_from(anna: User) -> None:
    mine, shared = personal_project(anna), shared_project(member=anna)
    uploaded = datasets.create_dataset_from_upload(user=anna, name="mine", archive=archive())
    arriving = uploads.create_upload(user=anna, file_name="a.zip", size=9, purpose="dataset")
    assert {uploaded.project, arriving.project} == {mine}
    base = DatasetFactory.create(project=shared)
    done = CompletedModelFactory.create(project=shared, dataset=base)
    made = [
        datasets.create_version(user=anna, base=base, archive=archive()),
        trainings.create_model(user=anna, name="net", dataset=base, hyperparameters={}),
        inferences.create_inference(user=anna, model=done, image=picture()),
        inferences.create_batch(user=anna, model=done, archive=archive()),
    ]
    assert {row.project for row in made} == {shared}
    assert {row.created_by for row in made} == {anna}


def test_versions_of_a_name_are_counted_in_each_project(anna: User, bert: User) -> None:
    def train(user: User) -> int:
        dataset: Any = DatasetFactory.create(created_by=user)
        return trainings.create_model(user=user, name="cells", dataset=dataset, hyperparameters={}).version

    assert [train(user) for user in (anna, bert, anna)] == [1, 1, 2]
