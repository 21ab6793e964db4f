"""What the process tells of its health, and how many calls it holds at most; in this process, without signals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from http import HTTPStatus

import grpc
import pytest
from grpc_health.v1 import health_pb2

from pointsman_worker.domain.model import Piece, Question
from pointsman_worker.infrastructure.settings import read
from pointsman_worker.interface import process

from worlds import WAIT, Scripted

WATCH = "/grpc.health.v1.Health/Watch"
SETTINGS, PING, GOAWAY, ACK = 4, 6, 7, 1


async def nothing(_: Question) -> AsyncGenerator[Piece, None]:
    yield Piece(finish_reason="stop")


class Sick(Scripted):
    """Cannot even be asked how it is, until it is well."""

    well = False

    async def trouble(self) -> str:
        if not self.well:
            raise ValueError("of its own")
        return ""


async def test_a_backend_that_cannot_be_asked_is_in_trouble_until_it_can() -> None:
    backend = Sick(nothing)
    worker = process.Process(read({"MODEL_NAME": "demo"}), backend)
    await worker._look()
    status, _, page = worker._ready_page()
    assert status is HTTPStatus.SERVICE_UNAVAILABLE
    assert b"the backend cannot be asked: ValueError" in page
    backend.well = True
    await worker._look()
    assert worker._ready_page()[0] is HTTPStatus.OK


async def test_calls_of_all_kinds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CALLS_SPARE", 1)
    told = read({"MODEL_NAME": "demo", "CONCURRENCY": "1", "QUEUE": "0"})
    worker = process.Process(told, Scripted(nothing))
    await worker._look()
    server = worker._server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        watch = channel.unary_stream(
            WATCH,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        held = [watch(health_pb2.HealthCheckRequest(), timeout=WAIT) for _ in range(2)]
        for call in held:
            await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await watch(health_pb2.HealthCheckRequest(), timeout=WAIT).read()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await server.stop(0)


async def test_an_idle_gateway_may_ask_whether_the_line_is_up() -> None:
    worker = process.Process(read({"MODEL_NAME": "demo"}), Scripted(nothing))
    server = worker._server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS))
    # By its own rules the library closes the line at the third ping without a call; a gateway pings every 10 s.
    for number in range(5):
        await asyncio.sleep(1.1)
        ping = number.to_bytes(8)
        writer.write(frame(PING, payload=ping))
        async with asyncio.timeout(WAIT):
            while (told := await next_frame(reader)) != (PING, ACK, ping):
                assert told[0] != GOAWAY, told
                if told[:2] == (SETTINGS, 0):
                    writer.write(frame(SETTINGS, ACK))
    writer.close()
    await server.stop(0)


def frame(kind: int, flags: int = 0, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2 that belongs to no stream."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + bytes(4) + payload


async def next_frame(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    """The kind, the flags and the payload of what comes next."""
    head = await reader.readexactly(9)
    return head[3], head[4], await reader.readexactly(int.from_bytes(head[:3]))
