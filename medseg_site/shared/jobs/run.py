"""Runs the work of every job and handles its errors: lost claims, cancellations, refusals, outages and all others."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import ClassVar, Generic, TypeVar

from celery.exceptions import SoftTimeLimitExceeded

from medseg_site.shared.base import outages
from medseg_site.shared.jobs.claim import CancelledError, Claim, ClaimLostError, claim
from medseg_site.shared.jobs.row import Job

log = logging.getLogger(__name__)
J = TypeVar("J", bound=Job)


class AttemptKilledError(Exception):
    """The process that did the work was killed. Another attempt may continue where this one stopped."""


class Work(Generic[J]):
    """The work of one table's jobs. A worker module subclasses it and makes one instance for each run."""

    model: type[J]
    TOO_LONG: ClassVar[str] = "The work took longer than its time limit."
    # `{error}` is the name of the error's class.
    UNEXPECTED: ClassVar[str] = "The work ended unexpectedly ({error}). Start it again; if it fails again, see its log."

    def do(self, job: Claim[J]) -> None:
        """Do all of the work and give up the claim, usually by `job.finish`."""
        raise NotImplementedError

    def refusal_of(self, row: J, error: Exception) -> str | None:
        """Return a sentence for the user if the work would fail again with this error; None for every other error."""
        return None

    def discard(self, job: Claim[J]) -> None:
        """Remove what the work has stored, before the row ends without a result.

        The claim may be lost by then. Another worker may then store objects below the same prefix.
        """

    def forget(self, row: J) -> None:
        """Remove what the work has stored for a row that was deleted meanwhile."""

    def refuse(self, job: Claim[J], error: Exception, reason: str) -> None:
        """Remove what the work has stored, and end the row as failed with this reason."""
        self.discard(job)
        job.fail(reason)

    def at_the_end(self, row: J) -> None:
        """Do what must follow every run, however it ended."""


def run(work: Work[J], pk: int) -> None:
    """Claim a row and do its work. Does nothing if the row cannot be claimed.

    An error of the work ends the row or queues it again, unless the claim is lost.
    """
    job = claim(work.model, pk)
    if job is None:
        return
    try:
        _attempt(work, job)
    finally:
        work.at_the_end(job.row)


def _attempt(work: Work[J], job: Claim[J]) -> None:
    try:
        work.do(job)
    except ClaimLostError:
        if not work.model._default_manager.filter(pk=job.row.pk).exists():
            work.forget(job.row)
    except CancelledError:
        work.discard(job)
        with suppress(ClaimLostError):
            job.cancel()
    except AttemptKilledError as error:
        job.end_attempt(str(error))
    except Exception as error:
        if reason := work.refusal_of(job.row, error):
            log.info("%s %s refused: %s", work.model.KIND, job.row.pk, reason)
            work.refuse(job, error, reason)
        elif reason := outages.reason_of(error):
            job.retry_later(reason)
        elif isinstance(error, SoftTimeLimitExceeded):
            work.refuse(job, error, work.TOO_LONG)
        else:
            log.exception("%s %s", work.model.KIND, job.row.pk)
            work.refuse(job, error, work.UNEXPECTED.format(error=type(error).__name__))
