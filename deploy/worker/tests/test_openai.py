"""The `openai` backend against a server that is good, broken, slow, erring or gone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import grpc
import pytest

from pointsman.inference.v1 import inference_pb2 as wire
from pointsman_worker.infrastructure.backends import openai, sse
from pointsman_worker.infrastructure.backends.openai import OpenAICompatible
from pointsman_worker.infrastructure.settings import OpenAI

from fake_openai import DONE, HEAD, FakeOpenAI, Play, Send, answers, data, delta, fake_openai, says, usage
from worlds import request, serving, soon, text_of, until

Code = grpc.StatusCode
KEY = "sk-very-secret"
GOOD = (delta(role="assistant", content=""), delta(content="Hi"), delta(content=" you"), delta("stop"))


def backend(fake: FakeOpenAI, idle: float = 5.0) -> OpenAICompatible:
    return OpenAICompatible(OpenAI(fake.url, KEY, "upstream-name", idle), connections=4)


async def ask(play: Play, asked: wire.StreamInferenceRequest | None = None) -> list[wire.StreamInferenceResponse]:
    async with fake_openai(play) as fake, serving(backend(fake)) as world:
        return await world.ask(asked or request())


async def fails(play: Play, idle: float = 5.0) -> grpc.aio.AioRpcError:
    async with fake_openai(play) as fake, serving(backend(fake, idle)) as world:
        return await world.fails(request())


async def test_a_good_stream_comes_through_with_its_bill_on_the_last_chunk() -> None:
    chunks = await ask(says(*GOOD, usage(7, 2, 3), DONE))
    assert text_of(chunks) == "Hi you"
    assert [(chunk.seq, chunk.token_count) for chunk in chunks] == [(0, 0), (0, 1), (1, 1), (2, 0)]
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].usage == wire.Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=3)
    assert chunks[0].fingerprint == ""


async def test_a_stream_without_a_bill_has_none_and_one_without_done_ends_well() -> None:
    chunks = await ask(says(*GOOD))
    assert chunks[-1].finish_reason == "stop"
    assert not chunks[-1].HasField("usage")


async def test_the_question_is_asked_as_it_was_put() -> None:
    asked = wire.StreamInferenceRequest(
        model="demo",
        messages=[
            wire.Message(role="user", parts_json='[{"type":"text","text":"x"}]', name="ann"),
            wire.Message(role="assistant", tool_calls_json='[{"id":"c1"}]', extra_json='{"audio":{"id":"a"}}'),
            wire.Message(role="tool", text="42", tool_call_id="c1"),
        ],
        parameters=wire.Parameters(
            max_tokens=9, temperature=0.5, top_p=0.25, seed=-3, stop=["a"], extra_json='{"top_k":5,"stream":false}'
        ),
    )
    async with fake_openai(says(*GOOD, DONE)) as fake, serving(backend(fake)) as world:
        trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        await world.ask(asked, metadata=(("traceparent", trace), ("tracestate", "vendor=1,other=2")))
        assert fake.bodies == [
            {
                "top_k": 5,
                "stream": True,
                "stream_options": {"include_usage": True},
                "model": "upstream-name",
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "x"}], "name": "ann"},
                    {"audio": {"id": "a"}, "role": "assistant", "content": None, "tool_calls": [{"id": "c1"}]},
                    {"role": "tool", "content": "42", "tool_call_id": "c1"},
                ],
                "max_tokens": 9,
                "temperature": 0.5,
                "top_p": 0.25,
                "seed": -3,
                "stop": ["a"],
            }
        ]
        assert fake.headers[0]["authorization"] == f"Bearer {KEY}"
        assert fake.headers[0]["traceparent"] == trace
        assert fake.headers[0]["tracestate"] == "vendor=1,other=2"


async def test_reasoning_calls_refusals_and_the_rest_each_have_their_place() -> None:
    call = [{"index": 0, "function": {"arguments": "{"}}]
    logprobs = {"choices": [{"index": 0, "delta": {"content": "ab"}, "logprobs": {"content": [{}, {}]}}]}
    parts = (delta(reasoning_content="hm"), delta(reasoning="so"), delta(tool_calls=call), delta(refusal="no"))
    chunks = await ask(says(*parts, delta(annotations=["x"]), data(logprobs), delta("function_call"), DONE))
    assert [chunk.reasoning for chunk in chunks[:2]] == ["hm", "so"]
    assert json.loads(chunks[2].tool_calls_json) == call
    assert chunks[3].refusal == "no"
    assert json.loads(chunks[4].extra_json) == {"annotations": ["x"]}
    assert json.loads(chunks[5].extra_json) == {"logprobs": {"content": [{}, {}]}}
    assert (chunks[5].token_count, chunks[6].seq) == (2, 6)
    assert chunks[6].finish_reason == "tool_calls"


async def test_several_choices_each_have_positions_and_an_end() -> None:
    parts = (delta(content="a"), delta(index=1, content="b"), delta("stop", index=1), delta(content="c"), delta("stop"))
    chunks = await ask(says(*parts, usage(1, 3), DONE), request(extra_json='{"n": 2}'))
    assert [(chunk.choice, chunk.seq, chunk.text) for chunk in chunks] == [
        (0, 0, "a"),
        (1, 0, "b"),
        (1, 1, ""),
        (0, 1, "c"),
        (0, 2, ""),
    ]
    assert [chunk.HasField("usage") for chunk in chunks] == [False, False, False, False, True]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_events_may_come_in_any_cut_and_with_any_line_end(size: int) -> None:
    text = b": hello\r\n\r\n" + delta(content="né").replace(b"\n", b"\r\n") + delta(content="🙂").replace(b"\n", b"\r")
    text += b"event: x\nid: 1\n" + b'data: {"choices": [{"delta":\r\ndata: {"content": "!"}, "index": 0}]}\r\n\r\n'
    text += delta("stop") + DONE
    assert text_of(await ask(says(*(text[at : at + size] for at in range(0, len(text), size))))) == "né🙂!"


async def test_half_a_character_and_what_is_no_number_are_made_fit_for_the_wire() -> None:
    odd = b'data: {"choices": [{"index": 0, "logprobs": {"p": NaN},'
    odd += b'"delta": {"content": "a\\ud83d", "x": "\\ud83d"}}]}\n\n'
    chunks = await ask(says(odd, delta("stop"), DONE))
    assert text_of(chunks) == "a\ufffd"
    assert json.loads(chunks[0].extra_json) == {"x": "\ud83d", "logprobs": {"p": None}}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
async def test_an_events_lines_are_joined_however_they_are_cut(size: int, end: bytes) -> None:
    text = end.join([b": note", b"data: one", b"data:two", b"", b"event: x", b"data", b"", b"", b"data: rest"])

    async def cuts() -> AsyncIterator[bytes]:
        for at in range(0, len(text), size):
            yield text[at : at + size]

    assert [event async for event in sse.events(cuts())] == ["one\ntwo", ""]


async def test_as_many_requests_as_the_worker_runs_reach_the_server_together() -> None:
    async def play(fake: FakeOpenAI, send: Send) -> None:
        while len(fake.bodies) < 4:
            await asyncio.sleep(0.01)
        await send(HEAD + b"".join(GOOD) + DONE)

    async with fake_openai(play) as fake, serving(backend(fake)) as world:
        answers = await asyncio.gather(*(world.ask(request()) for _ in range(4)))
        assert [text_of(chunks) for chunks in answers] == ["Hi you"] * 4


BROKEN = {
    "truncated before any word": says(),
    "truncated between words": says(*GOOD[:2]),
    "truncated within an event": says(*GOOD[:2], delta("stop")[:-2]),
    "done before its end": says(*GOOD[:2], DONE),
    "no JSON": says(b"data: {oops\n\n"),
    "no object": says(data([1])),
    "nonsense choices": says(data({"choices": "x"})),
    "a delta that is a list": says(data({"choices": [{"delta": [1]}]})),
    "text that is a number": says(delta(content=7)),
    "a foreign choice": says(delta(content="x", index=4)),
    "a bill in words": says(*GOOD, data({"choices": [], "usage": {"prompt_tokens": "many"}}), DONE),
    "more after the end": says(*GOOD, delta(content="more"), DONE),
    "given up": says(delta("abort"), DONE),
    "an error in the stream": says(*GOOD[:2], data({"error": {"message": "boom", "code": 500}})),
    "not UTF-8": says(b"data: \xff\n\n"),
    "a page": says(b"<html>", head=HEAD.replace(b"text/event-stream", b"text/html")),
    "an endless line": says(b"data: " + b"x" * (5 * 1024 * 1024)),
    "no HTTP": says(head=b"220 mail.example ESMTP\r\n"),
    "nothing at all": says(head=b""),
    "a body cut short": says(*GOOD[:2], head=HEAD.replace(b"Connection", b"Content-Length: 9999\r\nConnection")),
    "500": answers(500, {"error": {"message": "boom"}}),
    "a redirect": answers(307, b"", "Location: http://127.0.0.1:1/"),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_what_is_broken_is_an_internal_error_and_never_a_good_end(how: str) -> None:
    assert (await fails(BROKEN[how])).code() is Code.INTERNAL


REFUSALS = {
    "400": (answers(400, {"error": {"message": "context too long"}}), Code.INVALID_ARGUMENT),
    "422": (answers(422, b"not even JSON"), Code.INVALID_ARGUMENT),
    "401": (answers(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}), Code.PERMISSION_DENIED),
    "403": (answers(403, {}), Code.PERMISSION_DENIED),
    "402": (answers(402, {}), Code.PERMISSION_DENIED),
    "no money": (answers(429, {"error": {"code": "insufficient_quota"}}), Code.PERMISSION_DENIED),
    "404": (answers(404, {"error": {"message": "no such model"}}), Code.NOT_FOUND),
    "unknown model": (answers(400, {"error": {"code": "model_not_found"}}), Code.NOT_FOUND),
    "429": (answers(429, {"error": {}}, "Retry-After: 2"), Code.RESOURCE_EXHAUSTED),
    "503": (answers(503, {}), Code.UNAVAILABLE),
    "502": (answers(502, b"<html>"), Code.UNAVAILABLE),
    "overloaded in the stream": (says(data({"error": {"type": "overloaded_error"}})), Code.UNAVAILABLE),
    "rate in the stream": (says(data({"error": {"code": "429"}})), Code.RESOURCE_EXHAUSTED),
}


@pytest.mark.parametrize("how", REFUSALS)
async def test_each_refusal_has_its_status_and_none_tells_the_key(how: str) -> None:
    play, code = REFUSALS[how]
    error = await fails(play)
    assert error.code() is code
    assert KEY not in str(error.details())
    if how == "400":
        assert "context too long" in str(error.details())
    if how == "429":
        assert dict(error.trailing_metadata() or ())["retry-after-ms"] == "2000"


async def test_a_server_that_is_not_there_is_unavailable_and_trouble() -> None:
    async with fake_openai(says()) as fake:
        gone = backend(fake)
    async with serving(gone) as world:
        assert (await world.fails(request())).code() is Code.UNAVAILABLE
        assert "cannot be reached" in await gone.trouble()


async def test_trouble_is_what_the_list_of_models_says() -> None:
    async with fake_openai(says()) as fake, serving(backend(fake)) as world:
        for status, words in ((200, ""), (404, ""), (401, "OPENAI_API_KEY"), (500, "500")):
            fake.models_status = status
            trouble = await world.worker.backend.trouble()
            assert words in trouble
            assert bool(words) is bool(trouble)


async def test_silence_is_trouble_when_it_lasts_and_nothing_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "TROUBLE_SECONDS", 0.3)
    async with fake_openai(says(*GOOD)) as fake, serving(backend(fake)) as world:

        async def looks(count: int) -> list[bool]:
            return [bool(await world.worker.backend.trouble()) for _ in range(count)]

        fake.models_delay = 30
        assert await looks(1) == [True], "it has never answered"
        fake.models_delay = 0
        assert await looks(1) == [False]
        fake.models_delay = 30
        assert await looks(2) == [False, False]
        await world.ask(request())
        assert await looks(4) == [False] * 4, "it speaks"
        monkeypatch.setattr(openai, "SPOKE_SECONDS", 0.0)
        assert await looks(4) == [False, False, True, True]
        fake.models_delay = 0
        assert await looks(1) == [False]


async def test_a_silent_server_is_given_up() -> None:
    async def play(_: FakeOpenAI, send: Send) -> None:
        await send(HEAD + GOOD[1])
        await asyncio.sleep(60)

    began = time.monotonic()
    error = await fails(play, idle=0.3)
    assert error.code() is Code.INTERNAL
    assert "silent" in str(error.details())
    assert time.monotonic() - began < 3


async def test_an_answer_that_is_complete_does_not_wait_for_ever_for_its_bill(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(_: FakeOpenAI, send: Send) -> None:
        await send(HEAD + b"".join(GOOD))
        await asyncio.sleep(60)

    monkeypatch.setattr(openai, "BILL_SECONDS", 0.2)
    chunks = await ask(play)
    assert chunks[-1].finish_reason == "stop"
    assert not chunks[-1].HasField("usage")


async def test_a_cancelled_call_hangs_up_at_the_server() -> None:
    async def play(_: FakeOpenAI, send: Send) -> None:
        await send(HEAD + GOOD[1])
        await asyncio.sleep(60)

    async with fake_openai(play) as fake, serving(backend(fake)) as world:
        call = world.stub.StreamInference(request())
        await call.read()
        call.cancel()
        await soon(fake.hung_up.wait(), 2)
        await until(lambda: world.worker.gate.running == 0)


async def test_a_resume_is_refused() -> None:
    asked = request()
    asked.resume.seq = 1
    asked.resume.text = "Hi"
    async with fake_openai(says(*GOOD, DONE)) as fake, serving(backend(fake)) as world:
        assert (await world.fails(asked)).code() is Code.FAILED_PRECONDITION
        assert fake.bodies == []
