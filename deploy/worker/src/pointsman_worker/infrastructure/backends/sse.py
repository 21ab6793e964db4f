"""Server-sent events, as OpenAI-compatible servers write them: only `data` matters."""

from __future__ import annotations

from collections.abc import AsyncIterator

from pointsman_worker.domain.failures import BackendFailed

EVENT_BYTES_MAX = 4 * 1024 * 1024
"""The largest event. A chunk of an answer has some hundred bytes; logprobs of many tokens have more."""


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The data of each event, in order. What is unfinished at the end of the stream is no event and is dropped."""
    data: list[bytes] = []
    size = 0
    async for line in lines(chunks):
        if not line:
            if data:
                yield _text(b"\n".join(data))
            data, size = [], 0
        elif line == b"data" or line.startswith(b"data:"):
            value = line[5:].removeprefix(b" ")
            size += len(value)
            if size > EVENT_BYTES_MAX:
                raise BackendFailed("the backend sent an event that is too large")
            data.append(value)


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines without their ends, which are LF, CR LF or CR. A last line without an end is dropped."""
    rest = b""
    after_cr = False
    async for chunk in chunks:
        fresh = chunk.removeprefix(b"\n") if after_cr else chunk
        after_cr = (after_cr and not chunk) or fresh.endswith(b"\r")
        *whole, rest = (rest + fresh).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in whole:
            yield line
        if len(rest) > EVENT_BYTES_MAX:
            raise BackendFailed("the backend sent a line that is too long")


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BackendFailed("the backend sent an event that is not UTF-8") from error
