"""The `openai` backend before servers that continue an answer, and before such as only say so."""

from __future__ import annotations

import hashlib
from typing import Any

import grpc
import pytest

from pointsman.inference.v1 import inference_pb2 as wire
from pointsman_worker.infrastructure.backends.openai import OpenAICompatible
from pointsman_worker.infrastructure.settings import OpenAI

from fake_openai import DONE, HEAD, FakeOpenAI, Play, Send, answers, data, delta, fake_openai, usage
from worlds import MODEL, request, serving, text_of

LENGTH = 60
PROMPT = 11


def backend(fake: FakeOpenAI, continues: str = "r1") -> OpenAICompatible:
    return OpenAICompatible(OpenAI(fake.url, "", MODEL, 5.0, continues), 4, MODEL)


def word_after(text: str) -> str:
    """Of very different lengths, as tokens are."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return " " + digest[: 1 + int(digest[:2], 16) % 24]


def server(*, continues: bool = True, counts: bool = True) -> Play:
    """Its next word is a function of all text before it."""

    async def play(fake: FakeOpenAI, send: Send) -> None:
        body = fake.bodies[-1]
        goes_on = continues and body.get("continue_final_message") is True
        if goes_on:
            assert body["add_generation_prompt"] is False
            assert body["messages"][-1]["role"] == "assistant"
        text = body["messages"][-1]["content"] if goes_on else ""
        before = text.count(" ")
        most = min(body.get("max_tokens", LENGTH), LENGTH - before)
        told = counts and body["stream_options"].get("continuous_usage_stats") is True

        def said(produced: int, finish: str | None = None, **fields: str) -> bytes:
            event: dict[str, Any] = {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}
            if told:
                event["usage"] = {"prompt_tokens": PROMPT + before, "completion_tokens": produced}
            return data(event)

        await send(HEAD + said(0, role="assistant", content=""))
        for produced in range(1, most + 1):
            word = word_after(text)
            text += word
            await send(said(produced, content=word))
        await send(said(most, "stop" if before + most == LENGTH else "length"))
        await send(usage(PROMPT + before, most) + DONE)

    return play


def continued(
    asked: wire.StreamInferenceRequest, whole: list[wire.StreamInferenceResponse], at: int
) -> wire.StreamInferenceRequest:
    again = wire.StreamInferenceRequest()
    again.CopyFrom(asked)
    spoken = [chunk for chunk in whole if chunk.text][:at]
    again.resume.seq, again.resume.text = at, text_of(spoken)
    again.resume.fingerprint = whole[0].fingerprint
    return again


@pytest.mark.parametrize("most", [None, 40, 1])
async def test_behind_every_seam_it_is_the_unbroken_answer_and_bill(most: int | None) -> None:
    asked = request(max_tokens=most) if most else request()
    length = most or LENGTH
    async with fake_openai(server()) as fake, serving(backend(fake)) as first, serving(backend(fake)) as second:
        whole = await first.ask(asked)
        assert sum(chunk.token_count for chunk in whole) == length
        for at in (*range(1, length, 7), length):
            again = continued(asked, whole, at)
            rest = await second.ask(again)
            assert again.resume.text + text_of(rest) == text_of(whole), at
            if most is None or at < most:
                assert fake.bodies[-1]["messages"][-1] == {"role": "assistant", "content": again.resume.text}
                assert fake.bodies[-1].get("max_tokens") == (most - at if most else None)
                assert (rest[-1].usage, rest[-1].finish_reason) == (whole[-1].usage, whole[-1].finish_reason)
            else:
                assert rest[-1].finish_reason == "length"


async def test_a_server_that_counts_as_it_goes_costs_one_message_for_each_token() -> None:
    async with fake_openai(server()) as fake, serving(backend(fake)) as world:
        whole = await world.ask(request())
    spoken = [chunk for chunk in whole if chunk.text]
    assert len(spoken) == LENGTH
    # One that opens the answer, and the end with its bill.
    assert len(whole) <= LENGTH + 2, [str(chunk) for chunk in whole if not chunk.text]
    assert [chunk.HasField("usage") for chunk in whole] == [False] * (len(whole) - 1) + [True]
    assert whole[-1].usage == wire.Usage(prompt_tokens=PROMPT, completion_tokens=LENGTH)


async def test_what_was_estimated_before_the_seam_cuts_nothing_short() -> None:
    async with fake_openai(server(counts=False)) as fake, serving(backend(fake)) as world:
        whole = await world.ask(request(max_tokens=40))
        again = continued(request(max_tokens=40), whole, 12)
        again.resume.seq, again.resume.tokens_min = 38, 12
        rest = await world.ask(again)
        assert fake.bodies[-1]["max_tokens"] == 28
        assert again.resume.text + text_of(rest) == text_of(whole)
        # No more is counted than was asked for.
        assert sum(chunk.token_count for chunk in rest) == 2


async def test_the_fingerprint_is_that_of_the_rust_worker() -> None:
    async with fake_openai(server()) as fake:
        settings = OpenAI(fake.url, "", "theirs", 5.0, "r1")
        assert OpenAICompatible(settings, 4, "m").traits.fingerprint == "736cbfe3c5662ee1"
        assert backend(fake, "").traits.fingerprint == ""
        assert backend(fake, "r2").traits.fingerprint != backend(fake, "r1").traits.fingerprint


@pytest.mark.parametrize(
    ("play", "at", "words"),
    [
        (server(continues=False), 40, "shorter than the answer so far"),
        (server(continues=False), 12, "begins as the answer began"),
        (server(continues=False, counts=False), 12, "begins as the answer began"),
        (answers(400, {"error": {"message": "extra fields not permitted"}}), 12, "does not take"),
    ],
)
async def test_who_only_says_that_it_continues_is_found_out_before_a_word_is_passed_on(
    play: Play, at: int, words: str
) -> None:
    async with fake_openai(server()) as good, serving(backend(good)) as world:
        whole = await world.ask(request())
    async with fake_openai(play) as fake, serving(backend(fake)) as world:
        refused = await world.fails(continued(request(), whole, at))
        assert refused.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert words in (refused.details() or "")


async def test_only_plain_text_is_continued_and_a_caller_must_have_the_text() -> None:
    async with fake_openai(server()) as fake, serving(backend(fake)) as world:
        whole = await world.ask(request())
        count = len(fake.bodies)
        asked = [request(seed=3), request(stop=["x"]), request(extra_json='{"tools": [1]}')]
        again = [continued(question, whole, 12) for question in asked]
        again.append(continued(request(), whole, 12))
        again[-1].resume.text = ""
        again.append(continued(request(), whole, 12))
        again[-1].messages.add(role="assistant", text="Well,")
        for question in again:
            refused = await world.fails(question)
            assert refused.code() == grpc.StatusCode.FAILED_PRECONDITION, refused.details()
        assert len(fake.bodies) == count, "the server was not asked"


async def test_who_may_well_repeat_itself_is_not_held_up_for_long() -> None:
    async def play(_: FakeOpenAI, send: Send) -> None:
        again = (delta(content="ha ha"), delta(content=" ha"), delta("stop"), usage(9, 2), DONE)
        await send(HEAD + b"".join(again))

    async with fake_openai(play) as fake, serving(backend(fake)) as world:
        asked = request()
        asked.resume.seq, asked.resume.text = 2, "ha ha"
        asked.resume.fingerprint = world.worker.backend.traits.fingerprint
        rest = await world.ask(asked)
        assert text_of(rest) == "ha ha ha"
        assert rest[-1].usage == wire.Usage(prompt_tokens=7, completion_tokens=4)
