"""What the process tells of its health, and how many calls it holds at most; in this process, without signals."""

from __future__ import annotations

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
