"""A model without a model: each token is a function of a hash of all that is before it, prompt and answer.

One token lost, doubled or changed anywhere changes all that follow. So it proves a resume: the continued text equals
the unbroken one if, and only if, the continuation started from exactly what the client had.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Sequence

from pointsman_worker.domain.backend import Backend, Traits
from pointsman_worker.domain.failures import CannotResume
from pointsman_worker.domain.model import Piece, Question
from pointsman_worker.domain.text import Decoder
from pointsman_worker.domain.writer import Writer, resumed_ids
from pointsman_worker.infrastructure.backends.echo import prompt_words, refuse_choices
from pointsman_worker.infrastructure.settings import Settings

RULES = "hash/1"
"""Raised when the same prefix would give another token."""
TOKENS_DEFAULT = 256
"""Where the request does not bound the answer."""
END_ONE_IN = 509
"""One token in so many ends the answer, so that answers end by themselves as well."""
HALF = 256
"""The id of three of an emoji's four bytes: characters span tokens here as they do in real tokenizers."""
HALF_ONE_IN = 8
_HALF_BYTES = "\N{GRINNING FACE}".encode()[:3]
_SYLLABLES = [space + onset + vowel for space in ("", " ") for onset in "bdfgklmnprstvzé" for vowel in "aeiou"]
_FIRST_SYLLABLE = HALF + 1
VOCABULARY = _FIRST_SYLLABLE + len(_SYLLABLES)
"""Ids below 256 are single bytes, then the half, then syllables."""


def decode(ids: Sequence[int]) -> str:
    """The text of some ids, with U+FFFD for what is no whole character."""
    return b"".join(_bytes(token) for token in ids).decode(errors="replace")


class Hash:
    """Deterministic, and the same everywhere. The seed and the temperature are part of the prefix."""

    def __init__(self, model: str, token_delay: float) -> None:
        self._model = model
        self._delay = token_delay
        fingerprint = hashlib.sha256(f"{RULES} {model}".encode()).hexdigest()[:32]
        self.traits = Traits("hash", fingerprint, resumes_seeded=True)

    async def start(self) -> None:
        """Has nothing to load."""

    async def close(self) -> None:
        """Has nothing to give back."""

    async def trouble(self) -> str:
        """Never."""
        return ""

    def kv_used_permille(self) -> int | None:
        """Has no cache."""
        return None

    async def generate(self, question: Question) -> AsyncGenerator[Piece, None]:
        """Tokens of the hash, until it says that it ends, or the length is reached."""
        refuse_choices(question)
        before = resumed_ids(question)
        if any(token >= VOCABULARY for token in before):
            raise CannotResume("a token id before the seam is not of this vocabulary")
        decoder = Decoder(decode)
        writer = Writer(question, prompt_words(question), decoder.feed, decoder.rest)
        prefix = self._prefix(question)
        for token in before:
            prefix.update(token.to_bytes(4, "little"))
        unsaid = writer.replay(before)
        if unsaid is not None:
            yield unsaid
        last = before[-1] if before else None
        bounded = question.parameters.max_tokens is not None
        while not writer.ended():
            await asyncio.sleep(self._delay)
            last = _next(prefix.digest(), last)
            if last is None or (not bounded and writer.count >= TOKENS_DEFAULT):
                yield writer.end("stop" if last is None else "length")
                return
            prefix.update(last.to_bytes(4, "little"))
            yield writer.token(last)

    def _prefix(self, question: Question) -> hashlib.blake2b:
        parameters = question.parameters
        said = [message.as_openai() for message in question.messages]
        asked = [self._model, said, parameters.seed, parameters.temperature, parameters.top_p]
        return hashlib.blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=16)


def build(settings: Settings) -> Backend:
    """Makes it."""
    return Hash(settings.model, settings.token_delay)


def _next(digest: bytes, last: int | None) -> int | None:
    """The token that follows a prefix, whose last token is `last`; `None` where the answer ends."""
    number = int.from_bytes(digest[:8], "little")
    if last == HALF:
        return 0x80 + number % 0x40
    if number % END_ONE_IN == 0:
        return None
    if number % HALF_ONE_IN == 0:
        return HALF
    return _FIRST_SYLLABLE + (number // HALF_ONE_IN) % len(_SYLLABLES)


def _bytes(token: int) -> bytes:
    if token < HALF:
        return bytes([token])
    return _HALF_BYTES if token == HALF else _SYLLABLES[token - _FIRST_SYLLABLE].encode()
