"""The domain's own rules, without a server."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest

from pointsman_worker.domain.answer import Answer
from pointsman_worker.domain.failures import BackendFailed, CannotResume
from pointsman_worker.domain.model import Message, Parameters, Piece, Question, Resume, Usage
from pointsman_worker.domain.naming import LABEL_MAX, service_name
from pointsman_worker.domain.text import INCOMPLETE, WINDOW_MAX, Decoder, Seam, StopFilter
from pointsman_worker.domain.tracing import trace_ids
from pointsman_worker.domain.writer import Writer


def question(resume: Resume | None = None, **parameters: object) -> Question:
    return Question("m", (Message("user", "hi"),), Parameters(**parameters), resume)  # type: ignore[arg-type]


def decode_bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode(errors="replace")


def test_each_choice_counts_its_own_positions() -> None:
    answer = Answer(question(extra={"n": 2}))
    assert [answer.place(Piece("a", 2)).seq, answer.place(Piece("b", 1, choice=1)).seq] == [0, 0]
    assert [answer.place(Piece("c", 1)).seq, answer.place(Piece("d", 1, choice=1)).seq] == [2, 1]
    complete = []
    for choice in (0, 1):
        answer.place(Piece(finish_reason="stop", choice=choice))
        complete.append(answer.complete)
    assert complete == [False, True]
    assert answer.tokens == 5


def test_a_continued_answer_counts_from_its_seam() -> None:
    answer = Answer(question(Resume(7, (), "", "")))
    assert answer.place(Piece("a", 1)).seq == 7
    assert answer.seq() == 8


@pytest.mark.parametrize(
    "piece",
    [
        Piece(choice=1, text="x"),
        Piece(choice=-1, text="x"),
        Piece("x", 2, (1,)),
        Piece("x", 3, (1, 2, 3)),
        Piece("x", 1, finish_reason="because"),
    ],
)
def test_what_a_backend_may_not_say_is_its_failure(piece: Piece) -> None:
    with pytest.raises(BackendFailed):
        Answer(question(max_tokens=2)).place(piece)


def test_nothing_but_a_bill_follows_the_end() -> None:
    answer = Answer(question())
    last = answer.place(Piece("a", 1, finish_reason="stop"))
    answer.place(Piece(usage=Usage(3, 1)))
    assert answer.bill(last).piece.usage == Usage(3, 1)
    with pytest.raises(BackendFailed):
        answer.place(Piece("more", 1))


@pytest.mark.parametrize("text", ["plain", "né à Łódź", "a🙂b", "👩‍👩‍👧‍👦", "日本語"])
def test_characters_wait_for_their_last_byte_and_none_is_lost(text: str) -> None:
    decoder = Decoder(decode_bytes)
    told = [decoder.feed(byte) for byte in text.encode()]
    assert INCOMPLETE not in "".join(told)
    assert "".join(told) + decoder.rest() == text


def test_broken_bytes_come_out_as_such_at_the_end_and_never_wait_for_ever() -> None:
    decoder = Decoder(decode_bytes)
    assert decoder.feed(0xF0) == ""
    assert decoder.rest() == INCOMPLETE
    decoder = Decoder(decode_bytes)
    told = [decoder.feed(0x80) for _ in range(WINDOW_MAX * 2)]
    assert "".join(told) == INCOMPLETE * WINDOW_MAX * 2


@pytest.mark.parametrize("size", range(1, 6))
def test_a_stop_text_is_found_however_it_is_cut(size: int) -> None:
    text = "aa END EN ENDE and more"
    stops = StopFilter(["ENDE", "never"])
    shown = "".join(stops.feed(text[at : at + size]) for at in range(0, len(text), size))
    assert shown + stops.rest() == "aa END EN "
    assert stops.reached()


def test_what_only_looks_like_a_stop_text_is_shown_in_the_end() -> None:
    stops = StopFilter(["ENDE"])
    assert stops.feed("the EN") == "the "
    assert stops.rest() == "EN"
    assert not stops.reached()


def test_the_seam_hides_what_the_client_has_and_finds_what_it_cannot_have() -> None:
    seam = Seam("abc")
    assert [seam.feed("ab"), seam.feed("cd"), seam.feed("e")] == ["", "d", "e"]
    seam.check_passed()
    with pytest.raises(CannotResume):
        Seam("abc").feed("abd")
    with pytest.raises(CannotResume):
        Seam("abc").check_passed()


def spell(asked: Question, text: str) -> list[Piece]:
    """An answer whose tokens are bytes, written from a seam on."""
    decoder = Decoder(decode_bytes)
    writer = Writer(asked, 1, decoder.feed, decoder.rest)
    tokens = text.encode()
    before = len(asked.resume.token_ids) if asked.resume else 0
    unsaid = writer.replay(tuple(tokens[:before]))
    pieces = [unsaid] if unsaid else []
    for token in tokens[before:]:
        if writer.ended():
            return pieces
        pieces.append(writer.token(token))
    return pieces if writer.ended() else [*pieces, writer.end()]


@pytest.mark.parametrize(
    ("stop", "max_tokens"), [((), None), (("STOP",), None), (("ST", "🙂x"), None), ((), 12), (("STOP",), 19)]
)
def test_the_writer_goes_on_from_any_seam_as_if_there_were_none(stop: tuple[str, ...], max_tokens: int | None) -> None:
    text = "é🙂 S ST STO go STOP hidden"
    whole = spell(question(stop=stop, max_tokens=max_tokens), text)
    total = "".join(piece.text for piece in whole)
    tokens = sum(piece.tokens for piece in whole)
    for cut in range(tokens + 1):
        seen, count = "", 0
        for piece in whole:
            if count + piece.tokens > cut:
                break
            if piece.finish_reason:
                break
            seen, count = seen + piece.text, count + piece.tokens
        ids = tuple(text.encode()[:cut])
        rest = spell(question(Resume(cut, ids, seen, ""), stop=stop, max_tokens=max_tokens), text)
        assert seen + "".join(piece.text for piece in rest) == total, cut
        assert rest[-1].finish_reason == whole[-1].finish_reason, cut
        assert rest[-1].usage == whole[-1].usage, cut


def test_names_in_consul_are_labels_and_models_stay_apart_by_meta() -> None:
    # As `service_name` of the worker in Rust has them.
    for model, name in {
        "m": "llm-m",
        "org/Model-7b": "llm-org-Model-7b",
        "qwen2.5:7b": "llm-qwen2-5-7b",
        "模型": "llm-c98e118e",
        "é": "llm-4a99557e",
        "---": "llm-cb3f91d5",
        "模型-7": "llm----7",
        "a.b.": "llm-a-b",
    }.items():
        assert service_name(model) == name
        assert name.startswith("llm-")
        assert len(name) > len("llm-")
    long = "m" * 80
    digest = hashlib.sha256(long.encode()).hexdigest()[:8]
    assert service_name(long) == f"llm-{'m' * 50}-{digest}"
    assert len(service_name(long)) == LABEL_MAX
    assert service_name(long) != service_name(long + "m")


def test_trace_ids_are_taken_from_valid_headers_alone() -> None:
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    assert trace_ids(f"00-{trace}-{span}-01") == (trace, span)
    assert trace_ids(f"cc-{trace}-{span}-01-what-the-future-will-be") == (trace, span)
    wrong = ["", "x", f"00-{trace}-{span}-01-more", f"ff-{trace}-{span}-01", f"00-{'0' * 32}-{span}-01"]
    wrong += [f"00-{trace}-{'0' * 16}-01", f"00-{trace.upper()}-{span}-01", f"00-{trace}-{span}-01\n"]
    assert {trace_ids(header) for header in wrong} == {("", "")}
