"""The HTTP port, asked by probes, by strangers and by nobody."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus

import pytest

from pointsman_worker.infrastructure.settings import Address
from pointsman_worker.interface import http

from worlds import WAIT, until


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[int]:
    server = http.Http({"/page": lambda: http.text(HTTPStatus.OK, "hello")})
    port = await server.start(Address("127.0.0.1", 0))
    try:
        yield port
    finally:
        await server.close()


async def answer(port: int, head: bytes) -> bytes:
    """All that comes back, until the server hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    async with asyncio.timeout(WAIT):
        got = await reader.read()
    writer.close()
    return got


@pytest.mark.parametrize(
    ("head", "status", "body"),
    [
        (b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n", b"200 OK", b"hello"),
        (b"GET /page?a=b HTTP/1.0\r\n\r\n", b"200 OK", b"hello"),
        (b"HEAD /page HTTP/1.1\r\n\r\n", b"200 OK", b""),
        (b"POST /page HTTP/1.1\r\nContent-Length: 0\r\n\r\n", b"405", b"use GET\n"),
        (b"GET /else HTTP/1.1\r\n\r\n", b"404", b"nothing here; there are /page\n"),
        (b"GET \xff HTTP/1.1\r\n\r\n", b"404", b"nothing here; there are /page\n"),
        (b"hello\r\n\r\n", b"400", b"not an HTTP/1.1 request\n"),
        (b"GET /page HTTP/1.1\r\nX: " + b"x" * http.HEAD_BYTES_MAX * 2, b"400", b"not an HTTP/1.1 request\n"),
    ],
)
async def test_each_request_has_its_answer(head: bytes, status: bytes, body: bytes) -> None:
    async with served() as port:
        got = await answer(port, head)
        assert got.startswith(b"HTTP/1.1 " + status)
        assert got.partition(b"\r\n\r\n")[2] == body


async def test_who_says_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.1)
    async with served() as port:
        assert await answer(port, b"GET /page HT") == b""


async def test_too_many_at_once_are_hung_up_on_and_places_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTIONS_MAX", 2)
    async with served() as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert await answer(port, b"") == b""
        for _, writer in held:
            writer.close()
        answers: list[bytes] = []

        async def again() -> None:
            while not answers or not answers[-1]:
                answers.append(await answer(port, b"GET /page HTTP/1.1\r\n\r\n"))

        asking = asyncio.create_task(again())
        await until(asking.done)
        assert b"hello" in answers[-1]
