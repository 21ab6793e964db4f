"""Answers of an OpenAI-compatible server that go on behind a seam. No I/O.

The API has no word for it. vLLM and SGLang take two more members: with `continue_final_message` the conversation ends
in the middle of its last message, the assistant's, and `add_generation_prompt: false` opens no other. A server that
does not know them answers anew: that it does is the operator's word. What can be checked is checked: a prompt that
should hold the delivered text is not too short for it, and what comes does not begin as the answer began.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from pointsman_worker.domain.failures import CannotResume
from pointsman_worker.domain.model import Message, Parameters, Piece, Question, Usage

AGAIN_CHARACTERS_MIN = 32
"""An answer that begins again says at least so much of itself, and is known by no more than twice that."""
_HARMLESS = frozenset({"user", "metadata", "store", "service_tier", "stream", "stream_options"})
_ABSENT = {"n": 1, "logprobs": False, "echo": False}


def fingerprint(model: str, revision: str) -> str:
    """Equal for two servers that continue each other's answers; the Rust worker makes the same of the same."""
    return hashlib.sha256(f"prefix-1\0{model}\0{revision}".encode()).hexdigest()[:16] if revision else ""


def is_continuable(parameters: Parameters) -> bool:
    """Whether the answer is plain text, which whoever knows it so far can go on with."""
    harmless = all(
        name in _HARMLESS or value is None or (name in _ABSENT and value == _ABSENT[name])
        for name, value in parameters.extra.items()
    )
    return harmless and parameters.seed is None and not parameters.stop


def asked(question: Question) -> Question:
    """What the server is asked. Raises `CannotResume` where whoever goes on would have to know more than the text."""
    parameters, resume = question.parameters, question.resume
    told = {"stream_options": {"continuous_usage_stats": True}} if is_continuable(parameters) else {}
    if resume is None or not (resume.seq or resume.text):
        return replace(question, parameters=replace(parameters, extra={**parameters.extra, **told}), resume=None)
    if not resume.text:
        raise CannotResume("to continue, this backend needs the text of the tokens; there is none")
    if not told:
        raise CannotResume("only plain text can be continued here, without seed, stop, tools or formats")
    if question.messages[-1].role == "assistant":
        raise CannotResume("the question ends with a message of the assistant's own: nobody can say which is continued")
    extra = {**parameters.extra, **told, "continue_final_message": True, "add_generation_prompt": False}
    return replace(
        question,
        messages=(*question.messages, Message("assistant", resume.text)),
        parameters=replace(parameters, max_tokens=question.max_tokens_open, extra=extra),
        resume=None,
    )


class Seam:
    """One answer of a server that continues others: counted where the server counts, judged where it goes on."""

    def __init__(self, question: Question) -> None:
        resume = question.resume
        text = resume.text if resume else ""
        self._before = resume.seq if resume else 0
        self._begun = text[: 2 * AGAIN_CHARACTERS_MIN] if len(text) >= AGAIN_CHARACTERS_MIN else ""
        self._left = question.max_tokens_left
        self._counts = is_continuable(question.parameters)
        self._heard, self._held = "", list[Piece]()
        self._produced, self._judged = 0, False

    def pass_on(self, pieces: list[Piece]) -> list[Piece]:
        """What can be said after another event. Raises `CannotResume` where the server began anew."""
        usage = next((piece.usage for piece in pieces if piece.usage), None)
        ready = [Piece(usage=self._bill(piece.usage)) if piece.usage else self._count(piece, usage) for piece in pieces]
        if not self._judged and usage and usage.prompt_tokens < self._before // 2:
            raise _anew("its prompt is shorter than the answer so far")
        self._judged = self._judged or any(piece.says_something for piece in pieces)
        self._heard += "".join(piece.text for piece in pieces)
        self._held += ready
        if self._begun and self._heard.startswith(self._begun):
            raise _anew("what it says begins as the answer began")
        # Reasoning or a refusal is not the answer's text over again, and does not wait for any.
        other = any(piece.finish_reason or piece.reasoning or piece.refusal for piece in pieces)
        if other or not self._begun.startswith(self._heard):
            self._begun = ""
        if self._begun:
            return []
        self._heard, ready, self._held = "", self._held, []
        return ready

    def _count(self, piece: Piece, usage: Usage | None) -> Piece:
        """The piece with as many tokens as the server says; where it does not say, as many as it seems."""
        tokens = piece.tokens
        if tokens and usage and self._counts:
            tokens = max(0, usage.completion_tokens - self._produced)
        if self._left is not None and self._counts:
            tokens = min(tokens, max(0, self._left - self._produced))
        self._produced += tokens
        return replace(piece, tokens=tokens)

    def _bill(self, usage: Usage) -> Usage:
        """The server counts what is before the seam as prompt, the client has it counted: the sum is the server's."""
        before = min(self._before, usage.prompt_tokens)
        prompt = usage.prompt_tokens - before
        return Usage(prompt, usage.completion_tokens + before, min(usage.cached_tokens, prompt))


def _anew(why: str) -> CannotResume:
    return CannotResume(f"the backend began anew instead of continuing ({why}): OPENAI_CONTINUES is not for it")
