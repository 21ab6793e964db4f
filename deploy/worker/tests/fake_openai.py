"""A small OpenAI-compatible server on loopback that does what a test says, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

Send = Callable[[bytes], Awaitable[None]]
Play = Callable[["FakeOpenAI", Send], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\n\r\n"


@dataclass
class FakeOpenAI:
    """What it was asked, and whether the caller hung up while it spoke."""

    play: Play
    port: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    models_status: int = 200
    models_delay: float = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def send(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            if lines[0].startswith("GET /v1/models "):
                await asyncio.sleep(self.models_delay)
                await send(f"HTTP/1.1 {self.models_status} X\r\nContent-Length: 2\r\n\r\n{{}}".encode())
            else:
                assert lines[0] == "POST /v1/chat/completions HTTP/1.1", lines[0]
                self.headers.append(headers)
                self.bodies.append(json.loads(body))
                await self._speak(reader, send)
        writer.close()

    async def _speak(self, reader: asyncio.StreamReader, send: Send) -> None:
        playing = asyncio.ensure_future(self.play(self, send))
        listening = asyncio.create_task(reader.read(1))
        await asyncio.wait({playing, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not playing.done():
            self.hung_up.set()
            playing.cancel()
        listening.cancel()
        await asyncio.gather(playing, listening, return_exceptions=True)


@contextlib.asynccontextmanager
async def fake_openai(play: Play) -> AsyncIterator[FakeOpenAI]:
    fake = FakeOpenAI(play)
    server = await asyncio.start_server(fake._serve, "127.0.0.1", 0)
    fake.port = server.sockets[0].getsockname()[1]
    try:
        yield fake
    finally:
        server.close()


def data(event: object) -> bytes:
    """One event."""
    return f"data: {json.dumps(event)}\n\n".encode()


def delta(finish: str | None = None, index: int = 0, **fields: object) -> bytes:
    """One chunk of an answer."""
    return data({"choices": [{"index": index, "delta": fields, "finish_reason": finish}]})


def usage(prompt: int, completion: int, cached: int = 0) -> bytes:
    details = {"cached_tokens": cached}
    bill = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}
    return data({"choices": [], "usage": bill})


DONE = b"data: [DONE]\n\n"


def says(*parts: bytes, head: bytes = HEAD) -> Play:
    """Sends these parts, then hangs up."""

    async def play(_: FakeOpenAI, send: Send) -> None:
        for part in (head, *parts):
            await send(part)

    return play


def answers(status: int, body: object, *headers: str) -> Play:
    """Refuses."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(text)}", *headers]
    return says(text, head="\r\n".join(head).encode() + b"\r\n\r\n")
