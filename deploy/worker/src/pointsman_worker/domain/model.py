"""Questions and answers, as the wire means them, without the wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter"})
"""The only reasons that the wire knows for an answer's end."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation, in the terms of the OpenAI API.

    `content` is text, a list of content parts, or `None` where an assistant only called tools. `extra` holds all other
    fields of the message.
    """

    role: str
    content: str | list[Any] | None = None
    name: str = ""
    tool_call_id: str = ""
    tool_calls: list[Any] = field(default_factory=list)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def plain_text(self) -> str:
        """What it says, its text parts joined; images and sound say nothing here."""
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        texts = (part.get("text") for part in self.content if isinstance(part, dict))
        return "".join(text for text in texts if isinstance(text, str))

    def as_openai(self) -> dict[str, Any]:
        """The message as a JSON object of the OpenAI API."""
        told: dict[str, Any] = {**self.extra, "role": self.role, "content": self.content}
        if self.name:
            told["name"] = self.name
        if self.tool_call_id:
            told["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            told["tool_calls"] = self.tool_calls
        return told


@dataclass(frozen=True, slots=True)
class Parameters:
    """How to answer. `None` is the backend's default; `max_tokens` counts those before the seam of a resume too."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def choices(self) -> int:
        """How many answers are asked for (`n`)."""
        asked = self.extra.get("n")
        return asked if isinstance(asked, int) else 1


@dataclass(frozen=True, slots=True)
class Resume:
    """The part of an answer that its client already has: `seq` tokens, their ids where known, their text.

    Where some of `seq` were estimated, `tokens_min` is how many there are at least.
    """

    seq: int
    token_ids: tuple[int, ...]
    text: str
    fingerprint: str
    tokens_min: int | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """One question to a model."""

    model: str
    messages: tuple[Message, ...]
    parameters: Parameters = field(default_factory=Parameters)
    resume: Resume | None = None
    request_id: str = ""
    trace: Mapping[str, str] = field(default_factory=dict)
    """The headers that whoever is called for it is to be told."""

    @property
    def max_tokens_left(self) -> int | None:
        """How many tokens may still be generated; `None` where nobody bounds them."""
        if self.parameters.max_tokens is None:
            return None
        return max(0, self.parameters.max_tokens - (self.resume.seq if self.resume else 0))

    @property
    def max_tokens_open(self) -> int | None:
        """The same where an estimate must not end the answer early: only what is sure is taken off."""
        resume = self.resume
        if self.parameters.max_tokens is None or resume is None or resume.tokens_min is None:
            return self.max_tokens_left
        return max(0, self.parameters.max_tokens - min(resume.tokens_min, resume.seq))


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the whole answer, those before a seam included."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the worker is. `kv_used_permille` is `None` where the backend does not tell."""

    queued: int
    running: int
    running_max: int
    kv_used_permille: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """What a backend says next. It knows nothing of positions: those are counted in `answer`.

    `token_ids` are empty, or exactly `tokens` many. `finish_reason` is on the last piece of its choice, else empty.
    """

    text: str = ""
    tokens: int = 0
    token_ids: tuple[int, ...] = ()
    reasoning: str = ""
    refusal: str = ""
    tool_calls: list[Any] = field(default_factory=list)
    finish_reason: str = ""
    choice: int = 0
    usage: Usage | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def says_something(self) -> bool:
        """Whether it is more than a bill."""
        spoken = self.text or self.reasoning or self.refusal or self.tool_calls
        return bool(spoken or self.tokens or self.finish_reason or self.extra)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece at its place in the answer, with what the worker says of itself."""

    seq: int
    piece: Piece
    load: Load | None = None
    fingerprint: str = ""
