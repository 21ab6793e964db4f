"""Small worlds for the tests: a worker's gRPC server on loopback around any backend, and questions to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import grpc

from pointsman.inference.v1 import inference_pb2 as wire
from pointsman.inference.v1 import inference_pb2_grpc as wire_grpc
from pointsman_worker.application.gate import Gate
from pointsman_worker.application.inference import Inference
from pointsman_worker.application.observer import Observers, Record
from pointsman_worker.domain.backend import Backend, Traits
from pointsman_worker.domain.model import Piece, Question
from pointsman_worker.infrastructure.backends.echo import Echo
from pointsman_worker.infrastructure.backends.hash import Hash
from pointsman_worker.infrastructure.logs import RequestLog
from pointsman_worker.infrastructure.spans import NoSpans, Spans
from pointsman_worker.interface.servicer import Servicer

MODEL = "demo"
WAIT = 10.0
"""Far longer than anything here takes; a test that needs it has failed."""


@dataclass
class World:
    """A worker that serves, and all that its observer was told."""

    worker: Inference
    stub: wire_grpc.InferenceServiceAsyncStub
    records: list[Record]
    address: str

    async def ask(self, request: wire.StreamInferenceRequest, **call: object) -> list[wire.StreamInferenceResponse]:
        """All chunks of one answer. Raises `grpc.aio.AioRpcError`."""
        timeout = call.pop("timeout", WAIT)
        return [chunk async for chunk in self.stub.StreamInference(request, timeout=timeout, **call)]  # type: ignore[arg-type]

    async def fails(self, request: wire.StreamInferenceRequest, **call: object) -> grpc.aio.AioRpcError:
        """The error that a question ends with."""
        try:
            chunks = await self.ask(request, **call)
        except grpc.aio.AioRpcError as error:
            return error
        raise AssertionError(f"it was answered, with {len(chunks)} chunks")

    async def record(self) -> Record:
        """The record of the one request so far; it comes a moment after the caller has its status."""
        await until(lambda: len(self.records) == 1)
        return self.records[0]


class Recorder:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def request_ended(self, record: Record) -> None:
        self.records.append(record)


@contextlib.asynccontextmanager
async def serving(
    backend: Backend,
    *,
    concurrency: int = 8,
    queue: int = 8,
    seconds_max: float = 60.0,
    spans: Spans | NoSpans | None = None,
) -> AsyncIterator[World]:
    """Serves `backend` as the model `MODEL`."""
    await backend.start()
    recorder = Recorder()
    observer = Observers(RequestLog(), recorder)
    worker = Inference(MODEL, backend, Gate(concurrency, queue), observer, seconds_max)
    server = grpc.aio.server()
    wire_grpc.add_InferenceServiceServicer_to_server(Servicer(worker, spans or NoSpans()), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield World(worker, wire_grpc.InferenceServiceStub(channel), recorder.records, address)
    finally:
        await server.stop(0)
        await backend.close()


@dataclass
class Scripted:
    """A backend that does what a test says, and tells whether it was stopped."""

    play: Callable[[Question], AsyncGenerator[Piece, None]]
    traits: Traits = field(default_factory=lambda: Traits("scripted"))
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    begun: int = 0
    kv: int | None = None
    kept: list[AsyncGenerator[Piece, None]] = field(default_factory=list)
    """Its generators, so that closing them is not left to the garbage collector."""

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def trouble(self) -> str:
        return ""

    def kv_used_permille(self) -> int | None:
        return self.kv

    def generate(self, question: Question) -> AsyncGenerator[Piece, None]:
        self.kept.append(self._generate(question))
        return self.kept[-1]

    async def _generate(self, question: Question) -> AsyncGenerator[Piece, None]:
        self.begun += 1
        try:
            async with contextlib.aclosing(self.play(question)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self.closed.set()


def echo(delay: float = 0.0) -> Echo:
    return Echo(delay)


def hashing(delay: float = 0.0, model: str = MODEL) -> Hash:
    return Hash(model, delay)


def request(
    text: str = "one two three", *, model: str = MODEL, extra_json: str = "", **parameters: object
) -> wire.StreamInferenceRequest:
    """A question with one user message."""
    return wire.StreamInferenceRequest(
        model=model,
        messages=[wire.Message(role="user", text=text)],
        parameters=wire.Parameters(extra_json=extra_json, **parameters),  # type: ignore[arg-type]
        request_id="request-1",
    )


def text_of(chunks: list[wire.StreamInferenceResponse]) -> str:
    return "".join(chunk.text for chunk in chunks)


def ids_of(chunks: list[wire.StreamInferenceResponse]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


async def until(condition: Callable[[], object], seconds: float = WAIT) -> None:
    """Waits for something to become true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def soon(what: Awaitable[object], seconds: float = WAIT) -> None:
    async with asyncio.timeout(seconds):
        await what
