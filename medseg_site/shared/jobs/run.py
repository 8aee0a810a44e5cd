"""The one frame around the work of every job: what happens when it is lost, cancelled, refused, or met by an outage."""

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
    """The process that did the work was killed. Another attempt may go on where it stopped."""


class Work(Generic[J]):
    """What the job of one table does. A worker module subclasses it and makes one object for each run."""

    model: type[J]
    TOO_LONG: ClassVar[str] = "The work took longer than its time limit."
    # `{error}` is the name of the error's class.
    UNEXPECTED: ClassVar[str] = "The work ended unexpectedly ({error}). Start it again; if it fails again, see its log."

    def do(self, job: Claim[J]) -> None:
        """All of it, up to `job.finish`."""
        raise NotImplementedError

    def refusal_of(self, row: J, error: Exception) -> str | None:
        """The sentence for the user where trying again would not help; None for every other error."""
        return None

    def discard(self, job: Claim[J]) -> None:
        """Remove what was made, while the row is still ours. It is called before the row ends without a result."""

    def forget(self, row: J) -> None:
        """Remove what was made for a row that was deleted meanwhile."""

    def refuse(self, job: Claim[J], error: Exception, reason: str) -> None:
        """End the row as failed, with the reason."""
        self.discard(job)
        job.fail(reason)

    def at_the_end(self, row: J) -> None:
        """What follows whichever end the row came to."""


def run(work: Work[J], pk: int) -> None:
    """Do the work of one row. Whatever happens, the row has then ended or is queued again, or it is somebody else's."""
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
