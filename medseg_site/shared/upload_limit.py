"""Refuses a request body that is too large before any of it is kept (Django would spool it to disk first)."""

from __future__ import annotations

import json
from typing import Any


class UploadLimit:
    """ASGI middleware: answers 413 when the declared length is over `max_bytes`, and cuts off bodies that lie about it."""

    def __init__(self, app: Any, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", []))
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self.max_bytes:
            await self._refuse(send)
            return
        received, started = 0, False

        async def limited_receive() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            # Without a length the size shows only while reading; a disconnect makes Django drop what it has.
            return {"type": "http.disconnect"} if received > self.max_bytes else message

        async def noting_send(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        await self.app(scope, limited_receive, noting_send)
        if received > self.max_bytes and not started:
            await self._refuse(send)

    async def _refuse(self, send: Any) -> None:
        detail = f"The upload is larger than the limit of {self.max_bytes // 2**20} MB. Split it, or raise MEDSEG_MAX_UPLOAD_MB."
        error = {"code": "too_large", "detail": detail, "attr": None}
        body = json.dumps({"type": "client_error", "errors": [error]}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})
