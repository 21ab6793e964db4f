"""`/health`, `/ready` and `/metrics` over HTTP/1.1: three answers do not need a web framework."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from http import HTTPStatus

from pointsman_worker.infrastructure.settings import Address

HEAD_BYTES_MAX = 8 * 1024
"""A probe's head has some hundred bytes."""
HEAD_SECONDS = 5.0
WRITE_SECONDS = 5.0
CONNECTIONS_MAX = 64
"""Probes and scrapes come from a handful of places."""

Answer = tuple[HTTPStatus, str, bytes]
"""Status, content type, body."""
Page = Callable[[], Answer]


class Http:
    """Serves pages by path, one request for each connection."""

    def __init__(self, pages: dict[str, Page]) -> None:
        self._pages = pages
        self._servers: list[asyncio.Server] = []
        self._connections = 0

    async def start(self, address: Address) -> int:
        """Listens at `address`, and says at which port. Raises `OSError` where that cannot be."""
        server = await asyncio.start_server(self._serve, address.host, address.port, limit=HEAD_BYTES_MAX)
        self._servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        """Stops listening."""
        for server in self._servers:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= CONNECTIONS_MAX:
                await self._answer(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # Who asks goes away as he likes.
        finally:
            self._connections -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            head = b""
        method, (status, kind, body) = self._find(head)
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if method == b"HEAD" else body))
        async with asyncio.timeout(WRITE_SECONDS):
            await writer.drain()

    def _find(self, head: bytes) -> tuple[bytes, Answer]:
        """The method, and the answer to the request with this head."""
        parts = head.partition(b"\r\n")[0].split(b" ")
        if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
            return b"", text(HTTPStatus.BAD_REQUEST, "not an HTTP/1.1 request\n")
        method, path = parts[0], parts[1].partition(b"?")[0].decode(errors="replace")
        page = self._pages.get(path)
        if page is None:
            return method, text(HTTPStatus.NOT_FOUND, f"nothing here; there are {', '.join(self._pages)}\n")
        if method not in (b"GET", b"HEAD"):
            return method, text(HTTPStatus.METHOD_NOT_ALLOWED, "use GET\n")
        return method, page()


def text(status: HTTPStatus, what: str) -> Answer:
    """Plain text."""
    return status, "text/plain; charset=utf-8", what.encode()


def as_json(status: HTTPStatus, what: object) -> Answer:
    """A JSON object."""
    return status, "application/json", json.dumps(what).encode()
