"""Full, cancelled, late, draining: nothing is left running, and each is told what it must be told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

import grpc
import pytest

from pointsman_worker.application.gate import RETRY_MS_MAX, RETRY_MS_MIN, Gate
from pointsman_worker.domain.failures import Draining, Full
from pointsman_worker.domain.model import Piece, Question

from worlds import Scripted, echo, request, serving, soon, text_of, until

Code = grpc.StatusCode


async def forever(_: Question) -> AsyncGenerator[Piece, None]:
    """Says one word, then thinks."""
    yield Piece("x", 1)
    await asyncio.Event().wait()


async def endless(_: Question) -> AsyncGenerator[Piece, None]:
    """Never stops speaking."""
    while True:
        yield Piece("x" * 100_000, 1)
        await asyncio.sleep(0)


async def test_one_more_than_fits_is_told_when_to_come_back() -> None:
    backend = Scripted(forever)
    async with serving(backend, concurrency=2, queue=1) as world:
        calls = [world.stub.StreamInference(request()) for _ in range(3)]
        await until(lambda: world.worker.gate.queued == 1)
        error = await world.fails(request())
        assert error.code() is Code.RESOURCE_EXHAUSTED
        wait = int(dict(error.trailing_metadata() or ())["retry-after-ms"])
        assert RETRY_MS_MIN <= wait <= RETRY_MS_MAX
        assert backend.begun == 2
        assert (world.worker.load().queued, world.worker.load().running) == (1, 2)
        for call in calls:
            call.cancel()
        await until(lambda: world.worker.gate.running == world.worker.gate.queued == 0)


async def test_who_waits_is_served_when_a_place_is_free_first_come_first() -> None:
    order: list[str] = []
    go = asyncio.Event()

    async def play(question: Question) -> AsyncGenerator[Piece, None]:
        order.append(question.messages[0].plain_text())
        await go.wait()
        yield Piece("x", 1, finish_reason="stop")

    async with serving(Scripted(play), concurrency=1, queue=4) as world:
        waiting = []
        for number in range(4):
            waiting.append(asyncio.create_task(world.ask(request(str(number)))))
            await until(lambda at=number: world.worker.gate.running + world.worker.gate.queued == at + 1)  # type: ignore[misc]
        go.set()
        await asyncio.gather(*waiting)
        assert order == ["0", "1", "2", "3"]


@pytest.mark.parametrize("play", [forever, endless])
async def test_a_cancelled_call_stops_its_backend_at_once(play: object) -> None:
    backend = Scripted(play)  # type: ignore[arg-type]
    async with serving(backend) as world:
        call = world.stub.StreamInference(request())
        await call.read()
        began = time.monotonic()
        call.cancel()
        await soon(backend.closed.wait())
        assert time.monotonic() - began < 0.5
        assert (await world.record()).outcome == "cancelled"
        await until(lambda: world.worker.gate.running == 0)


async def test_a_caller_who_does_not_read_slows_the_backend_down_and_can_leave() -> None:
    backend = Scripted(endless)
    async with serving(backend) as world:
        call = world.stub.StreamInference(request())
        await call.read()
        await asyncio.sleep(0.3)
        counted = world.worker.gate.running
        call.cancel()
        await soon(backend.closed.wait())
        record = await world.record()
        assert counted == 1
        assert record.tokens < 300  # Some windows full, of the thousands that it could have said.


async def test_who_leaves_the_queue_takes_no_place() -> None:
    backend = Scripted(forever)
    async with serving(backend, concurrency=1, queue=1) as world:
        first = world.stub.StreamInference(request())
        await first.read()
        second = world.stub.StreamInference(request())
        await until(lambda: world.worker.gate.queued == 1)
        second.cancel()
        await until(lambda: world.worker.gate.queued == 0)
        assert backend.begun == world.worker.gate.running == 1
        first.cancel()


async def test_the_callers_deadline_ends_a_run_and_a_wait() -> None:
    backend = Scripted(forever)
    async with serving(backend, concurrency=1, queue=1) as world:
        calls = [world.fails(request(), timeout=0.3), world.fails(request(), timeout=0.3)]
        errors = await asyncio.gather(*calls)
        assert {error.code() for error in errors} == {Code.DEADLINE_EXCEEDED}
        await until(lambda: len(world.records) == 2)
        assert {record.outcome for record in world.records} == {"deadline"}
        assert world.worker.gate.running == world.worker.gate.queued == 0
        await soon(backend.closed.wait())


async def test_the_workers_own_longest_time_ends_a_call_without_a_deadline() -> None:
    async with serving(Scripted(forever), seconds_max=0.2) as world:
        error = await world.fails(request(), timeout=None)
        assert error.code() is Code.DEADLINE_EXCEEDED
        assert (await world.record()).outcome == "deadline"


async def test_draining_lets_runs_finish_and_sends_others_away() -> None:
    async with serving(echo(0.05), concurrency=1, queue=1) as world:
        running = asyncio.create_task(world.ask(request("one two three four")))
        await until(lambda: world.worker.gate.running == 1)
        waiting = asyncio.create_task(world.fails(request()))
        await until(lambda: world.worker.gate.queued == 1)
        drained = asyncio.create_task(world.worker.drain(10))
        await until(lambda: world.worker.gate.draining)
        for refused in (await waiting, await world.fails(request())):
            assert refused.code() is Code.UNAVAILABLE
            # Without it a gateway takes the worker for broken.
            assert dict(refused.trailing_metadata() or ())["retry-after-ms"] == "5000"
        assert not running.done()
        assert text_of(await running) == "one two three four"
        assert await drained


async def test_what_outlasts_the_drain_ends_as_unavailable() -> None:
    backend = Scripted(forever)
    async with serving(backend) as world:
        running = asyncio.create_task(world.fails(request()))
        await until(lambda: backend.begun == 1)
        assert not await world.worker.drain(0.1)
        assert (await running).code() is Code.UNAVAILABLE
        await soon(backend.closed.wait())


async def test_the_gate_never_lets_in_more_than_it_has_places_whoever_leaves() -> None:
    gate = Gate(2, 100)
    most = 0

    async def visit(number: int) -> None:
        nonlocal most
        async with gate.slot():
            most = max(most, gate.running)
            await asyncio.sleep(0.001 * (number % 3))

    visits = [asyncio.create_task(visit(number)) for number in range(60)]
    for number, task in enumerate(visits):
        await asyncio.sleep(0)
        if number % 7 == 0:
            task.cancel()
    await asyncio.gather(*visits, return_exceptions=True)
    assert most == 2
    assert gate.running == gate.queued == 0
    await soon(gate.idle())


async def test_a_place_given_to_who_just_left_goes_to_the_next() -> None:
    gate = Gate(1, 2)
    entered: list[str] = []

    async def visit(name: str) -> None:
        async with gate.slot():
            entered.append(name)

    async with gate.slot():
        leaving, staying = asyncio.create_task(visit("leaving")), asyncio.create_task(visit("staying"))
        await until(lambda: gate.queued == 2)
    leaving.cancel()  # Its place was given at the end of the block, and it has not woken yet.
    await soon(staying)
    assert entered == ["staying"]
    assert gate.running == 0


async def test_a_gate_without_a_queue_refuses_and_a_draining_one_too() -> None:
    gate = Gate(1, 0)
    async with gate.slot():
        with pytest.raises(Full):
            async with gate.slot():
                pass
        gate.drain()
        with pytest.raises(Draining):
            async with gate.slot():
                pass
