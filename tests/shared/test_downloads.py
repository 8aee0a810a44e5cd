"""A download reaches the client piece by piece."""

from __future__ import annotations

import asyncio
import io

import pytest

from medseg_site.shared.downloads import StreamedFileResponse


class Source(io.BytesIO):
    largest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.largest = max(self.largest, len(data))
        return data


@pytest.mark.filterwarnings("error")
def test_a_file_is_never_read_whole_under_asgi() -> None:
    data = bytes(range(256)) * 8192
    source = Source(data)

    async def collect() -> list[bytes]:
        return [part async for part in StreamedFileResponse(source)]

    parts = asyncio.run(collect())
    assert b"".join(parts) == data
    assert len(parts) == 8
    assert source.largest == StreamedFileResponse.block_size
