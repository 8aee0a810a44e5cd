"""Errors that a user can act on. Services raise them; pages and the API turn them into an answer."""

from __future__ import annotations


class MedSegError(Exception):
    """A request that cannot be done, with the reason and the cure in one text.

    `code` is a stable machine word, `attr` the field it is about (None: the whole request), `http_status` the answer's status.
    """

    def __init__(self, code: str, detail: str, *, attr: str | None = None, http_status: int = 400) -> None:
        self.code = code
        self.detail = detail
        self.attr = attr
        self.http_status = http_status
        super().__init__(detail)


class WrongStateError(MedSegError):
    """The row is not in a state in which this can be done (HTTP 409)."""

    def __init__(self, detail: str) -> None:
        super().__init__("wrong_state", detail, http_status=409)


def refuse_if(reason: str | None) -> None:
    """Raise WrongStateError where there is a reason, such as a service's `why_not_deletable` gives it to pages too."""
    if reason:
        raise WrongStateError(reason)
