"""Continued answers: at every seam the same text as without one, and a clear refusal where that cannot be."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import grpc
import pytest

from pointsman.inference.v1 import inference_pb2 as wire
from pointsman_worker.domain.backend import Backend
from pointsman_worker.domain.model import Piece, Question

from worlds import Scripted, echo, hashing, ids_of, request, serving, text_of

Code = grpc.StatusCode


def continued(
    asked: wire.StreamInferenceRequest, had: list[wire.StreamInferenceResponse], fingerprint: str
) -> wire.StreamInferenceRequest:
    """The question that goes on after the chunks that a client had."""
    again = wire.StreamInferenceRequest()
    again.CopyFrom(asked)
    again.resume.seq = sum(chunk.token_count for chunk in had)
    again.resume.token_ids.extend(ids_of(had))
    again.resume.text = text_of(had)
    again.resume.fingerprint = fingerprint
    return again


QUESTIONS: dict[str, tuple[Backend, wire.StreamInferenceRequest, str]] = {
    "hash": (hashing(), request("tell me", max_tokens=60), "length"),
    "hash, by itself": (hashing(), request("end soon 3"), "stop"),
    "hash, seeded": (hashing(), request("tell me", max_tokens=25, seed=3, temperature=1.0), "length"),
    "hash, stop across tokens": (hashing(), request("tell me", max_tokens=60, stop=["never", "salebeso"]), "stop"),
    "hash, stop at half": (
        hashing(),
        request("tell me", max_tokens=60, stop=["na\u00e9ezo", "\U0001f61d \u00e9u"]),
        "stop",
    ),
    "echo": (echo(), request("one  two three four\nfive "), "stop"),
    "echo, stop": (echo(), request("one two three four five", stop=["ee f"]), "stop"),
    "echo, short": (echo(), request("one two three four five", max_tokens=4), "length"),
}


@pytest.mark.parametrize("name", QUESTIONS)
async def test_at_every_seam_the_continued_answer_equals_the_unbroken_one(name: str) -> None:
    backend, asked, reason = QUESTIONS[name]
    async with serving(backend) as first, serving(backend) as second:
        whole = await first.ask(asked)
        mark = whole[0].fingerprint
        assert len(whole) > 3
        assert whole[-1].finish_reason == reason
        for cut in range(len(whole)):
            had = whole[:cut]
            rest = await second.ask(continued(asked, had, mark))
            assert rest[0].seq == sum(chunk.token_count for chunk in had)
            assert text_of(had) + text_of(rest) == text_of(whole), cut
            assert ids_of(had) + ids_of(rest) == ids_of(whole), cut
            assert rest[-1].usage == whole[-1].usage, cut
            assert rest[-1].finish_reason == whole[-1].finish_reason, cut


async def test_when_all_tokens_arrived_and_only_the_end_was_lost_the_end_is_told() -> None:
    asked = request("tell me", max_tokens=10)
    async with serving(hashing()) as world:
        whole = await world.ask(asked)
        rest = await world.ask(continued(asked, whole, whole[0].fingerprint))
        assert [(chunk.seq, chunk.token_count, chunk.text) for chunk in rest] == [(10, 0, "")]
        assert rest[0].finish_reason == "length"
        assert rest[0].usage.completion_tokens == 10


async def test_a_token_changed_before_the_seam_changes_what_follows() -> None:
    asked = request("tell me", max_tokens=40)
    async with serving(hashing()) as world:
        whole = await world.ask(asked)
        again = continued(asked, whole[:20], whole[0].fingerprint)
        again.resume.token_ids[0] = 300 if again.resume.token_ids[0] != 300 else 301
        again.resume.text = ""
        changed = await world.ask(again)
        assert ids_of(changed) != ids_of(whole)[20:]


async def refused(backend: Backend, change: dict[str, object], asked: wire.StreamInferenceRequest) -> str:
    """Continues an answer with something wrong in it, and gives the status and its words."""
    async with serving(backend) as world:
        whole = await world.ask(asked)
        again = continued(asked, whole[:3], backend.traits.fingerprint)
        for name, value in change.items():
            if name == "token_ids":
                del again.resume.token_ids[:]
                again.resume.token_ids.extend(value)  # type: ignore[arg-type]
            else:
                setattr(again.resume, name, value)
        error = await world.fails(again)
        return f"{error.code().name}: {error.details()}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fingerprint": "another"}, "FAILED_PRECONDITION: the answer was begun by a worker with another fingerprint"),
        ({"fingerprint": ""}, "FAILED_PRECONDITION"),
        ({"token_ids": []}, "FAILED_PRECONDITION: this backend continues from token ids"),
        ({"token_ids": [1]}, "INVALID_ARGUMENT: `resume.token_ids`: 1 ids, but `resume.seq` is 3"),
        ({"token_ids": [2**32 - 1] * 3}, "FAILED_PRECONDITION"),
        ({"text": "something else"}, "FAILED_PRECONDITION: the text before the seam"),
        ({"seq": 2**63}, "INVALID_ARGUMENT"),
    ],
)
async def test_a_resume_that_cannot_be_done_is_refused(change: dict[str, object], said: str) -> None:
    assert said in await refused(hashing(), change, request("tell me", max_tokens=12))


async def test_echo_refuses_more_tokens_than_its_answer_has_and_another_text() -> None:
    asked = request("one two three four")
    assert "FAILED_PRECONDITION" in await refused(echo(), {"seq": 5}, asked)
    assert "FAILED_PRECONDITION" in await refused(echo(), {"text": "one two twee"}, asked)


async def test_two_models_do_not_continue_each_other() -> None:
    assert hashing().traits.fingerprint == hashing().traits.fingerprint
    assert hashing(model="a").traits.fingerprint != hashing(model="b").traits.fingerprint
    assert hashing().traits.fingerprint != echo().traits.fingerprint


async def test_a_backend_without_a_fingerprint_refuses_and_so_do_several_choices() -> None:
    async def play(_: Question) -> AsyncGenerator[Piece, None]:
        yield Piece("x", 1, finish_reason="stop")

    asked = request()
    asked.resume.seq = 1
    async with serving(Scripted(play)) as world:
        error = await world.fails(asked)
        assert error.code() is Code.FAILED_PRECONDITION
        assert "cannot continue" in str(error.details())
    several = request(extra_json='{"n": 2}')
    several.resume.fingerprint = hashing().traits.fingerprint
    async with serving(hashing()) as world:
        assert (await world.fails(several)).code() is Code.FAILED_PRECONDITION
