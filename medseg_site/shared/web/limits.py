"""Refuses a request body that is too large, or that the disk has no room for.

Django writes every body to the disk before it calls a view or an error handler, so this is ASGI middleware around Django.
"""

from __future__ import annotations

import logging
from typing import Any

from django.http import HttpResponse, JsonResponse

from medseg_site.shared.base import outages
from medseg_site.shared.base.text import whole_number
from medseg_site.shared.web import failures

log = logging.getLogger(__name__)


class UploadLimit:
    """Answers 413 when the declared length is over `max_bytes`, and cuts off a body that is longer than it declared.

    Answers 503 when the disk is full.
    """

    def __init__(self, app: Any, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", []))
        length = headers.get(b"content-length", b"")
        if length.isdigit() and whole_number(length.decode(), maximum=self.max_bytes) is None:
            await _answer(send, self._refusal())
            return
        received, started = 0, False

        async def limited_receive() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            # Without a length the size is known only while reading. A disconnect makes Django drop the body.
            return {"type": "http.disconnect"} if received > self.max_bytes else message

        async def noting_send(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, limited_receive, noting_send)
        except OSError as error:
            reason = outages.reason_of(error)
            if reason is None or started:
                raise
            log.warning("%s %s: %s (%s)", scope["method"], scope["path"], reason, error)
            await _answer(send, failures.outage(scope["path"], reason))
            return
        if received > self.max_bytes and not started:
            await _answer(send, self._refusal())

    def _refusal(self) -> HttpResponse:
        detail = f"The upload is larger than the limit of {self.max_bytes // 2**20} MB. Split it, or raise MEDSEG_MAX_UPLOAD_MB."
        error = {"code": "too_large", "detail": detail, "attr": None}
        return JsonResponse({"type": "client_error", "errors": [error]}, status=413)


async def _answer(send: Any, response: HttpResponse) -> None:
    """Send an answer and close the connection, since the rest of the body is not read."""
    headers = {**response.headers, "Content-Length": str(len(response.content)), "Connection": "close"}
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": response.status_code, "headers": encoded})
    await send({"type": "http.response.body", "body": response.content})
