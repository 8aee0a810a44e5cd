"""Files to clients, piece by piece also under ASGI, where Django's own FileResponse would read all of it into memory first."""

from __future__ import annotations

from collections.abc import AsyncIterator

from asgiref.sync import sync_to_async
from django.http import FileResponse


class StreamedFileResponse(FileResponse):
    block_size = 2**18

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = iter(self)

        def read() -> bytes | None:
            return next(parts, None)

        while (part := await sync_to_async(read)()) is not None:
            yield part
