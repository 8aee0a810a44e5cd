"""Sends the message of a row, which is the Celery task of its table with the row's number.

A message may arrive twice. The claim makes that harmless.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from django.db import transaction
from django.utils.module_loading import import_string

from medseg_site.shared.jobs.row import Job

log = logging.getLogger(__name__)


def send_on_commit(row: Job) -> None:
    """Send the message of a row that was just queued, once the transaction is committed."""
    call_on_commit(row.TASK, row.pk)


def call_on_commit(task: str, pk: int) -> None:
    """Send a row's number to the Celery task of this dotted path, once the transaction is committed.

    No error is raised if the broker does not answer, because the reaper will send the message.
    """
    transaction.on_commit(partial(_try_to_call, task, pk))


def _try_to_call(task: str, pk: int) -> None:
    try:
        call(task, pk)
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:
        log.warning("%s for %s is not sent (%s); the reaper will send it", task, pk, error)


def call(task: str, pk: int) -> None:
    """Send a row's number to the Celery task of this dotted path now. Raises an error if the broker does not answer."""
    # The task is imported, so that it also runs where tasks are run at once instead of being sent.
    found: Any = import_string(task)
    found.apply_async(args=[pk], retry=False)
