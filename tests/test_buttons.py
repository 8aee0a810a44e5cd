"""A page offers exactly what its service would do now, and says in the service's words why it does not offer the rest."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress
from html import escape
from html.parser import HTMLParser
from typing import Any

import pytest
from django.db import transaction
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

import datasets.services
import inference.services
import models_app.services
from inference.models import InferenceBatch, InferenceResult
from medseg_site.shared.base.errors import WrongStateError
from tests.factories import CompletedModelFactory, DatasetFactory, InferenceFactory, ModelFactory, end_of
from tests.pages import batch, completed_inference, text

OFFERED, BLOCKED, ABSENT = "offered", "blocked", "absent"
STOPPING = "It is stopping already"
Row = Any
Ask = Callable[[Row], object]

pytestmark = pytest.mark.django_db


class Buttons(HTMLParser):
    """Addresses of a page's submit buttons and button-like links: whether they can be pressed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._action = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "form":
            self._action = given.get("action") or ""
        elif tag == "button" and given.get("type") == "submit":
            self.found[self._action] = BLOCKED if "disabled" in given else OFFERED
        elif tag == "a" and "btn" in (given.get("class") or "").split():
            self.found[given.get("href") or ""] = OFFERED

    def state_of(self, address: str) -> str:
        return self.found.get(address, ABSENT)


class _UndoneError(Exception):
    """Ends a transaction of which nothing is to stay."""


def refusal_of(ask: Ask, row: Row) -> str | None:
    """What a service says against it; nothing of what it did stays."""
    fresh = type(row).objects.get(pk=row.pk)
    with suppress(_UndoneError):
        try:
            with transaction.atomic():
                ask(fresh)
                raise _UndoneError
        except WrongStateError as error:
            return error.detail
    return None


def answer_of(address: str) -> Ask:
    """Ask the API for a file."""

    def ask(row: Row) -> None:
        answer = APIClient().get(address)
        if answer.status_code == 409:
            raise WrongStateError(answer.json()["errors"][0]["detail"])

    return ask


def check(client: Client, row: Row, buttons: dict[str, Ask]) -> dict[str, str]:
    """Hold every button against its service. The state of each, by address."""
    page = text(client, row.get_absolute_url())
    shown = Buttons(page)
    for address, ask in buttons.items():
        state, refusal = shown.state_of(address), refusal_of(ask, row)
        if state == BLOCKED and refusal is None:
            # A second wish to stop is no mistake, but there is nothing more to wish for.
            assert row.cancel_requested, address
            assert STOPPING in page, address
            continue
        assert (state == OFFERED) == (refusal is None), (address, state, refusal)
        if state == BLOCKED:
            assert escape(str(refusal)) in page, (address, refusal)
    return {address: shown.state_of(address) for address in buttons}


# --- Datasets -------------------------------------------------------------------------------------------------------------
def _with_training(status: str) -> Row:
    return ModelFactory.create(status=status).dataset


def _with_newer_version(status: str) -> Row:
    base = DatasetFactory.create()
    DatasetFactory.create(family=base.family, version=2, based_on=1, status=status, s3_key="")
    return base


def _refused(**columns: Any) -> Row:
    return DatasetFactory.create(status="error", error="Nothing fits.", **columns)


DATASETS: dict[str, Callable[[], Row]] = {
    "waiting": lambda: DatasetFactory.create(status="uploaded"),
    "checked": lambda: DatasetFactory.create(status="uploaded", claim_token=uuid.uuid4()),
    "stopping": lambda: DatasetFactory.create(status="uploaded", claim_token=uuid.uuid4(), cancel_requested=True),
    "ready": DatasetFactory.create,
    "waited for by a training": lambda: _with_training("queued"),
    "read by a training": lambda: _with_training("training"),
    "trained on": lambda: _with_training("cancelled"),
    "built on": lambda: _with_newer_version("uploaded"),
    "of an older version": lambda: _with_newer_version("ready"),
    "refused with its archive": _refused,
    "refused without its archive": lambda: _refused(s3_key=""),
    "refused from an address": lambda: _refused(s3_key="", source_url="https://example.org/a.zip"),
    "refused version that leaves out": lambda: _refused(s3_key="", based_on=1, version=2, leave_out=["a"]),
    "refused version of an archive": lambda: _refused(s3_key="", based_on=1, version=2, archive_name="a.zip"),
    "cancelled": lambda: DatasetFactory.create(status="error", error=DatasetFactory._meta.model.CANCELLED),
}
CAN_BE_CHECKED_AGAIN = {
    "refused with its archive",
    "refused from an address",
    "refused version that leaves out",
    "cancelled",
}


@pytest.mark.parametrize("state", DATASETS)
def test_buttons_of_a_dataset(client: Client, user: Any, state: str) -> None:
    row = DATASETS[state]()
    services = datasets.services
    states = check(
        client,
        row,
        {
            reverse("datasets:delete", args=[row.pk]): lambda row: services.delete_dataset(user=user, dataset=row),
            reverse("datasets:recheck", args=[row.pk]): lambda row: services.recheck_dataset(user=user, dataset=row),
            reverse("datasets:cancel", args=[row.pk]): lambda row: services.cancel_dataset(user=user, dataset=row),
            reverse("datasets:version", args=[row.pk]): lambda row: services.create_version(
                user=user, base=row, source_url="http://93.184.216.34/a.zip"
            ),
            f"{reverse('models_app:create')}?dataset={row.pk}": lambda row: models_app.services.preview_plan(
                user=user, dataset=row, hyperparameters={}
            ),
        },
    )
    deletion, check_again, cancel, version, training = states.values()
    assert deletion == (BLOCKED if state in {"waited for by a training", "read by a training", "built on"} else OFFERED)
    assert (check_again == OFFERED) == (state in CAN_BE_CHECKED_AGAIN)
    assert (cancel == OFFERED) == (state in {"waiting", "checked"})
    assert (version == OFFERED) == (training == OFFERED) == (row.status == "ready")


# --- Models ---------------------------------------------------------------------------------------------------------------
def _in_use(by: type[Any], status: str) -> Row:
    model = CompletedModelFactory.create()
    names = {"image_name": "a.png"} if by is InferenceResult else {"archive_name": "a.zip"}
    row = by(model=model, status=status, **names)
    row.finished_at = end_of(row)
    row.error = "why" if status == "failed" else None
    row.save()
    return model


def _failed(**columns: Any) -> Row:
    return ModelFactory.create(status="failed", error="Memory ran out.", **columns)


MODELS: dict[str, Callable[[], Row]] = {
    "queued": ModelFactory.create,
    "training": lambda: ModelFactory.create(status="training", claim_token=uuid.uuid4()),
    "stopping": lambda: ModelFactory.create(status="training", claim_token=uuid.uuid4(), cancel_requested=True),
    "failed": _failed,
    "failed with its dataset deleted": lambda: _failed(dataset=None),
    "failed with the model it starts from deleted": lambda: _failed(requested={"warm_start": "999"}),
    "cancelled": lambda: ModelFactory.create(status="cancelled"),
    "cancelled with weights": lambda: CompletedModelFactory.create(status="cancelled"),
    "completed": CompletedModelFactory.create,
    "completed with its dataset deleted": lambda: CompletedModelFactory.create(dataset=None),
    **{
        f"{by.KIND} {status}": lambda by=by, status=status: _in_use(by, status)  # type: ignore[misc]  # of this turn
        for by in (InferenceResult, InferenceBatch)
        for status in ("queued", "running", "failed", "cancelled")
    },
}


@pytest.mark.parametrize("state", MODELS)
def test_buttons_of_a_model(client: Client, user: Any, state: str) -> None:
    row = MODELS[state]()
    services = models_app.services
    package = reverse("model-download", args=[row.pk])
    states = check(
        client,
        row,
        {
            reverse("models_app:delete", args=[row.pk]): lambda row: services.delete_model(user=user, model=row),
            reverse("models_app:cancel", args=[row.pk]): lambda row: services.cancel_model(user=user, model=row),
            reverse("models_app:resume", args=[row.pk]): lambda row: _resume(user, row),
            f"{reverse('inference:create')}?model={row.pk}": lambda row: inference.services._check_usable(row),
            package: answer_of(package),
        },
    )
    deletion, cancel, resume, use, download = states.values()
    in_use = state in {"inference queued", "inference running", "batch queued", "batch running"}
    assert deletion == (BLOCKED if row.is_active or in_use else OFFERED)
    assert (cancel == OFFERED) == (state in {"queued", "training"})
    assert (resume == OFFERED) == (state in {"failed", "cancelled", "cancelled with weights"})
    assert (use == OFFERED) == (download == OFFERED) == row.is_usable


def _resume(user: Any, model: Row) -> None:
    try:
        models_app.services.resume_model(user=user, model=model)
    except models_app.services.HyperparametersError as error:
        raise WrongStateError(error.detail) from None


# --- Inferences and batches -----------------------------------------------------------------------------------------------
def _image_of_batch(**columns: Any) -> Row:
    return InferenceFactory.create(status="failed", error="why", batch=batch(status="running", **columns))


INFERENCES: dict[str, Callable[[], Row]] = {
    "queued": InferenceFactory.create,
    "running": lambda: InferenceFactory.create(status="running", claim_token=uuid.uuid4()),
    "stopping": lambda: InferenceFactory.create(status="running", claim_token=uuid.uuid4(), cancel_requested=True),
    "completed": completed_inference,
    "failed": lambda: InferenceFactory.create(status="failed", error="why"),
    "cancelled": lambda: InferenceFactory.create(status="cancelled"),
    "failed with its model deleted": lambda: InferenceFactory.create(status="failed", error="why", model=None),
    "failed in a running batch": _image_of_batch,
    "failed in a batch that stops": lambda: _image_of_batch(cancel_requested=True),
}


@pytest.mark.parametrize("state", INFERENCES)
def test_buttons_of_an_inference(client: Client, user: Any, state: str) -> None:
    row = INFERENCES[state]()
    services = inference.services
    mask = reverse("inference-mask", args=[row.pk])
    states = check(
        client,
        row,
        {
            reverse("inference:delete", args=[row.pk]): lambda row: services.delete_inference(user=user, inference=row),
            reverse("inference:cancel", args=[row.pk]): lambda row: services.cancel_inference(user=user, inference=row),
            reverse("inference:retry", args=[row.pk]): lambda row: services.retry_inference(user=user, inference=row),
            mask: answer_of(mask),
        },
    )
    deletion, cancel, retry, download = states.values()
    assert deletion == OFFERED
    assert (cancel == OFFERED) == (state in {"queued", "running"})
    assert (retry == OFFERED) == (state in {"failed", "cancelled", "failed in a running batch"})
    assert (download == OFFERED) == (state == "completed")


def _ended(status: str, *, masks: bool) -> Row:
    row = batch(status="running")
    if masks:
        completed_inference(batch=row)
    InferenceFactory.create(status="failed", error="why", batch=row)
    error = "why" if status == "failed" else None
    InferenceBatch.objects.filter(pk=row.pk).update(status=status, error=error, finished_at=row.created_at)
    row.refresh_from_db()
    return row


BATCHES: dict[str, Callable[[], Row]] = {
    "queued": batch,
    "running": lambda: batch(status="running"),
    "stopping": lambda: batch(status="running", cancel_requested=True),
    "completed": lambda: _ended("completed", masks=True),
    "completed with its masks deleted": lambda: _ended("completed", masks=False),
    "cancelled": lambda: _ended("cancelled", masks=True),
    "cancelled before a mask": lambda: _ended("cancelled", masks=False),
    "failed": lambda: _ended("failed", masks=False),
}


@pytest.mark.parametrize("state", BATCHES)
def test_buttons_of_a_batch(client: Client, user: Any, state: str) -> None:
    row = BATCHES[state]()
    services = inference.services
    masks = reverse("inference-batch-download", args=[row.pk])
    states = check(
        client,
        row,
        {
            reverse("inference:batch_delete", args=[row.pk]): lambda row: services.delete_batch(user=user, batch=row),
            reverse("inference:batch_cancel", args=[row.pk]): lambda row: services.cancel_batch(user=user, batch=row),
            masks: answer_of(masks),
        },
    )
    deletion, cancel, download = states.values()
    assert deletion == OFFERED
    assert (cancel == OFFERED) == (state in {"queued", "running"})
    assert (download == OFFERED) == (state in {"completed", "cancelled"})
