"""Each act leaves one event, which nobody can change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from accounts import audit
from accounts.models import AuditEvent, Membership, Project
from accounts.services import personal_project
from datasets import services as datasets
from datasets.models import Dataset
from medseg_site.shared.base.errors import WrongStateError
from medseg_site.shared.base.local_user import local_user
from tests.accounts.changes import CHANGES, archive, whole_upload
from tests.accounts.conftest import shared_project
from tests.factories import CompletedModelFactory, DatasetFactory, ModelFactory

pytestmark = pytest.mark.django_db


def acts() -> list[tuple[str, str, str]]:
    return list(AuditEvent.objects.order_by("pk").values_list("user_name", "action", "object_kind"))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", CHANGES)
def test_each_act_of_a_member_leaves_one_event(anna: User, name: str) -> None:
    change, project = CHANGES[name], shared_project(member=anna)
    about = change.make(project)
    name_before = str(about)
    made: Any = change.do(anna, about)
    if not change.act:
        assert acts() == []
        return
    if change.act in {"upload", "train", "segment"}:
        about, name_before = made, str(made)
    event = AuditEvent.objects.get()
    assert (event.user, event.action, event.project) == (anna, change.act, project)
    assert (event.object_kind, event.object_uuid, event.object_name) == (about.KIND, about.uuid, name_before)


def use_an_upload_twice(user: User) -> None:
    """As after a lost answer."""
    upload = whole_upload(personal_project(user))
    for _ in range(2):
        datasets.create_dataset_from_parts(user=user, name="x", upload=upload.uuid)


@pytest.mark.parametrize(
    "way",
    [
        lambda user: datasets.create_dataset_from_upload(user=user, name="x", archive=archive()),
        lambda user: datasets.create_dataset_from_url(user=user, name="x", source_url="https://example.org/a.zip"),
        use_an_upload_twice,
    ],
    ids=["file", "address", "upload"],
)
def test_a_new_dataset_is_one_upload(anna: User, monkeypatch: Any, way: Callable[[User], object]) -> None:
    monkeypatch.setattr(datasets, "check_url", lambda *args, **kwargs: None)
    way(anna)
    assert acts() == [("anna", "upload", "dataset")]


def test_an_act_that_is_refused_leaves_none() -> None:
    used = DatasetFactory.create()
    ModelFactory.create(dataset=used, status="queued")
    with pytest.raises(WrongStateError):
        datasets.delete_dataset(user=local_user(), dataset=used)
    with pytest.raises(WrongStateError):
        CHANGES["cancel a training"].do(local_user(), CompletedModelFactory.create())
    assert acts() == []


@pytest.mark.django_db(transaction=True)
def test_a_result_that_somebody_else_deleted_meanwhile_is_deleted_once() -> None:
    for name in ("delete an inference", "delete a batch"):
        row = CHANGES[name].make(personal_project(local_user()))
        for same in (type(row).objects.get(pk=row.pk), row):
            CHANGES[name].do(local_user(), same)
    assert [kind for _, _, kind in acts()] == ["inference", "batch"]


def test_requests_say_where_they_come_from(api: APIClient, client: Client) -> None:
    one, two, three = (DatasetFactory.create() for _ in range(3))
    assert api.delete(f"/api/v1/datasets/{one.pk}/", REMOTE_ADDR="192.0.2.7").status_code == 204
    assert client.post(reverse("datasets:delete", args=[two.pk]), REMOTE_ADDR="2001:db8::1").status_code == 303
    datasets.delete_dataset(user=local_user(), dataset=three)
    addresses = AuditEvent.objects.order_by("pk").values_list("address", flat=True)
    assert list(addresses) == ["192.0.2.7", "2001:db8::1", ""]
    assert acts() == [("local", "delete", "dataset")] * 3


def event(user: User) -> AuditEvent:
    row = DatasetFactory.create(created_by=user)
    audit.record(user, "upload", row)
    return AuditEvent.objects.get()


@pytest.mark.parametrize("column", ["action", "user_name", "object_name", "at", "user", "project"])
def test_an_event_cannot_be_changed(anna: User, bert: User, column: str) -> None:
    found = event(anna)
    other = {"at": found.at.replace(year=2000), "user": bert, "project": personal_project(bert)}.get(column, "x")
    with pytest.raises(IntegrityError, match="never changed"), transaction.atomic():
        AuditEvent.objects.filter(pk=found.pk).update(**{column: other})
    assert AuditEvent.objects.values().get() == AuditEvent.objects.values().get(
        pk=found.pk, **{column: getattr(found, column)}
    )


def test_an_event_cannot_be_deleted(anna: User) -> None:
    found = event(anna)
    with pytest.raises(IntegrityError, match="never changed"), transaction.atomic():
        found.delete()
    with pytest.raises(IntegrityError, match="never changed"), transaction.atomic():
        AuditEvent.objects.all().delete()
    assert acts() == [("anna", "upload", "dataset")]


def test_an_event_stays_when_its_user_and_its_project_go(anna: User) -> None:
    event(anna)
    Dataset.objects.all().delete()
    Project.objects.all().delete()
    anna.delete()
    found = AuditEvent.objects.get()
    assert (found.user, found.project, found.user_name, found.object_name[:7]) == (None, None, "anna", "dataset")


@pytest.mark.django_db(transaction=True)
def test_a_flush_empties_the_audit_and_leaves_its_guard(anna: User) -> None:
    event(anna)
    call_command("flush", interactive=False, verbosity=0)
    assert acts() == []
    test_an_event_cannot_be_deleted(User.objects.create_user("anna"))


def test_the_admin_shows_projects_and_the_audit_and_changes_nothing(client: Client, anna: User, bert: User) -> None:
    found, membership = event(anna), Membership.objects.create(project=personal_project(bert), user=anna, role="viewer")
    client.force_login(local_user())
    for row, words in ((found, "upload"), (membership.project, "viewer")):
        table = f"admin:accounts_{row._meta.model_name}"
        assert str(getattr(row, "user_name", row)) in client.get(reverse(f"{table}_changelist")).content.decode()
        page = reverse(f"{table}_change", args=[row.pk])
        assert words in client.get(page).content.decode()
        assert client.post(page, {"name": "x"}).status_code == 403
        assert client.get(reverse(f"{table}_add")).status_code == 403


def test_staff_see_the_audit_and_the_projects_that_they_are_in(client: Client, anna: User, bert: User) -> None:
    audit.record(anna, "upload", DatasetFactory.create(created_by=anna, name="hers"))
    audit.record(bert, "upload", DatasetFactory.create(created_by=bert, name="his"))
    User.objects.filter(pk=anna.pk).update(is_staff=True)
    anna.user_permissions.set(Permission.objects.filter(codename__in=["view_auditevent", "view_project"]))
    client.force_login(User.objects.get(pk=anna.pk))
    page = client.get(reverse("admin:accounts_auditevent_changelist")).content.decode()
    assert "hers" in page
    assert "his<" not in page
    page = client.get(reverse("admin:accounts_project_changelist")).content.decode()
    assert ">bert<" not in page
