"""Answers over a real gRPC server: what a chunk carries, and how each end is told."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator

import grpc
import pytest

from pointsman.inference.v1 import inference_pb2 as wire
from pointsman_worker.domain import failures, label
from pointsman_worker.domain.backend import Traits
from pointsman_worker.domain.model import Piece, Question, Usage

from worlds import Scripted, echo, hashing, ids_of, request, serving, text_of, until

Code = grpc.StatusCode


async def test_echo_says_the_last_user_message_word_by_word() -> None:
    asked = wire.StreamInferenceRequest(
        model="demo",
        messages=[
            wire.Message(role="user", text="no"),
            wire.Message(role="assistant", text="never"),
            wire.Message(role="user", parts_json=json.dumps([{"type": "text", "text": " one  two\n"}])),
        ],
    )
    async with serving(echo()) as world:
        chunks = await world.ask(asked)
        assert text_of(chunks) == " one  two\n"
        assert [(chunk.seq, chunk.token_count) for chunk in chunks] == [(0, 1), (1, 1), (2, 1), (3, 0)]
        assert chunks[-1].finish_reason == "stop"
        assert chunks[-1].usage == wire.Usage(prompt_tokens=5, completion_tokens=3)
        assert (await world.record()).outcome == "ok"


async def test_the_first_chunk_has_fingerprint_and_load_the_last_has_bill_and_load() -> None:
    backend = hashing()
    async with serving(backend, concurrency=3) as world:
        chunks = await world.ask(request(max_tokens=20))
        assert chunks[0].fingerprint == backend.traits.fingerprint
        assert chunks[0].load == wire.Load(running=1, running_max=3)
        assert chunks[-1].HasField("load")
        assert chunks[-1].usage.completion_tokens == len(ids_of(chunks)) == 20
        assert not any(chunk.fingerprint or chunk.HasField("load") for chunk in chunks[1:-1])
        assert not any(chunk.HasField("usage") or chunk.finish_reason for chunk in chunks[:-1])


async def test_positions_follow_each_other_without_gap() -> None:
    async with serving(hashing()) as world:
        chunks = await world.ask(request(max_tokens=50))
        for chunk, after in itertools.pairwise(chunks):
            assert after.seq == chunk.seq + chunk.token_count


async def test_the_same_question_has_the_same_answer_and_another_has_another() -> None:
    async with serving(hashing()) as world:
        first, again = await world.ask(request(max_tokens=30)), await world.ask(request(max_tokens=30))
        other, seeded = await world.ask(request("else", max_tokens=30)), await world.ask(request(max_tokens=30, seed=1))
        assert ids_of(first) == ids_of(again)
        assert ids_of(first) != ids_of(other)
        assert ids_of(first) != ids_of(seeded)


async def test_a_load_report_comes_each_second_while_the_backend_thinks() -> None:
    async def play(_: Question) -> AsyncGenerator[Piece, None]:
        await asyncio.sleep(2.3)
        yield Piece("x", 1, finish_reason="stop")

    async with serving(Scripted(play, Traits("scripted", "mark"), kv=250)) as world:
        chunks = await world.ask(request())
        assert [chunk.token_count for chunk in chunks] == [0, 0, 1]
        assert [chunk.fingerprint for chunk in chunks] == ["mark", "", ""]
        assert all(chunk.load.kv_used_permille == 250 and chunk.load.running == 1 for chunk in chunks)


async def test_a_bill_that_comes_after_the_end_is_on_the_last_chunk() -> None:
    async def play(_: Question) -> AsyncGenerator[Piece, None]:
        yield Piece("x", 1)
        yield Piece(finish_reason="stop")
        yield Piece(usage=Usage(10, 1, 4))

    async with serving(Scripted(play)) as world:
        chunks = await world.ask(request())
        assert len(chunks) == 2
        assert chunks[-1].finish_reason == "stop"
        assert chunks[-1].usage == wire.Usage(prompt_tokens=10, completion_tokens=1, cached_tokens=4)


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (failures.InvalidQuestion("why"), Code.INVALID_ARGUMENT),
        (failures.UnknownModel("why"), Code.NOT_FOUND),
        (failures.Unavailable("why"), Code.UNAVAILABLE),
        (failures.CannotResume("why"), Code.FAILED_PRECONDITION),
        (failures.CredentialsRefused("why"), Code.PERMISSION_DENIED),
        (failures.BackendFailed("why"), Code.INTERNAL),
        (RuntimeError("holds a prompt"), Code.INTERNAL),
        (TimeoutError("of its own"), Code.INTERNAL),
    ],
)
async def test_each_failure_has_its_status(failure: Exception, code: grpc.StatusCode) -> None:
    async def play(_: Question) -> AsyncGenerator[Piece, None]:
        yield Piece("x", 1)
        raise failure

    async with serving(Scripted(play)) as world:
        error = await world.fails(request())
        assert error.code() is code
        assert ("why" in str(error.details())) is isinstance(failure, failures.Failure)
        assert "prompt" not in str(error.details())
        record = await world.record()
        assert record.outcome == getattr(failure, "outcome", "backend_failed")
        assert record.tokens == 1
        assert world.worker.gate.running == 0


async def test_a_full_backend_says_when_to_come_back() -> None:
    async def play(_: Question) -> AsyncGenerator[Piece, None]:
        if _.model:
            raise failures.Full("full", 1234)
        yield Piece()

    async with serving(Scripted(play)) as world:
        error = await world.fails(request())
        assert error.code() is Code.RESOURCE_EXHAUSTED
        assert dict(error.trailing_metadata() or ())["retry-after-ms"] == "1234"


async def test_an_answer_that_breaks_off_is_never_a_good_end() -> None:
    async def play(_: Question) -> AsyncGenerator[Piece, None]:
        yield Piece("x", 1)

    async with serving(Scripted(play)) as world:
        assert (await world.fails(request())).code() is Code.INTERNAL


BAD = {
    "model": request(model="other"),
    "messages": wire.StreamInferenceRequest(model="demo"),
    "role": wire.StreamInferenceRequest(model="demo", messages=[wire.Message(role="root", text="x")]),
    "parts_json": wire.StreamInferenceRequest(model="demo", messages=[wire.Message(role="user", parts_json="{}")]),
    "tool_calls_json": wire.StreamInferenceRequest(
        model="demo", messages=[wire.Message(role="assistant", tool_calls_json="[" * 100_000)]
    ),
    "extra_json": request(extra_json="[]"),
    "`messages`": request(extra_json='{"messages": []}'),
    "extra_json`": request(extra_json='{"x": NaN}'),
    "extra_json`:": request(extra_json='{"x": "\\ud800"}'),
    "`n`": request(extra_json='{"n": 0}'),
    "`n`:": request(extra_json='{"n": 2}'),
    "max_tokens": request(max_tokens=0),
    "temperature": request(temperature=float("nan")),
    "temperature`": request(temperature=-1),
    "top_p": request(top_p=0),
    "top_p`": request(top_p=float("nan")),
    "stop": request(stop=[""]),
    "stop`": request(stop=["x"] * 65),
}


@pytest.mark.parametrize("field", BAD)
async def test_a_bad_request_is_told_what_is_bad_in_it(field: str) -> None:
    async with serving(echo()) as world:
        error = await world.fails(BAD[field])
        assert error.code() is (Code.NOT_FOUND if field == "model" else Code.INVALID_ARGUMENT)
        assert field in str(error.details())
        assert (await world.record()).outcome in ("invalid", "unknown_model")


async def test_describe_tells_what_a_gateway_needs() -> None:
    backend = hashing()
    async with serving(backend, concurrency=2) as world:
        told = await world.stub.Describe(wire.DescribeRequest())
        assert list(told.models) == ["demo"]
        assert (told.backend, told.resumes_seeded, told.draining) == ("hash", True, False)
        assert told.fingerprint == backend.traits.fingerprint != ""
        assert told.load == wire.Load(running_max=2)
        assert told.version
        world.worker.gate.drain()
        assert (await world.stub.Describe(wire.DescribeRequest())).draining


async def test_ids_and_traces_reach_the_record_cut_to_what_a_log_can_hold() -> None:
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    asked = request()
    asked.request_id = "r\n" + "x" * 500
    keyed = "sess_00f067aa0ba902b7"
    metadata = (
        ("x-session-id", "s-1"),
        ("x-pointsman-session", keyed),
        ("x-pointsman-attempt", "3"),
        ("traceparent", f"00-{trace}-{span}-01"),
    )
    async with serving(echo()) as world:
        await world.ask(asked, metadata=metadata)
        await until(lambda: world.records)
        record = world.records[0]
        assert (record.session_id, record.trace_id, record.span_id) == (keyed, trace, span)
        assert record.retries == 2
        assert record.request_id == "r" + "x" * 126
        assert record.first_token is not None
        assert 0 <= record.first_token <= record.duration


async def test_what_may_be_a_sessions_own_name_comes_to_stand_nowhere() -> None:
    for said in ("session-of-ann", "sess_short", "sess_00F067AA0BA902B7", "sess_00f067aa0ba902b7\n", ""):
        assert label.session_id(said) == ""
    assert [label.retries(said) for said in ("0", "-1", "1000", "", "one", "\u0661")] == [None] * 6
    metadata = (("x-pointsman-session", "session-of-ann"), ("x-session-id", "s-1"), ("x-pointsman-attempt", "first"))
    async with serving(echo()) as world:
        await world.ask(request(), metadata=metadata)
        await until(lambda: world.records)
        assert (world.records[0].session_id, world.records[0].retries) == ("", None)
