"""Says the last user message again, word by word. For trying things out, and for tests."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator

from pointsman_worker.domain.backend import Backend, Traits
from pointsman_worker.domain.failures import CannotResume, InvalidQuestion
from pointsman_worker.domain.model import Piece, Question
from pointsman_worker.domain.writer import Writer
from pointsman_worker.infrastructure.settings import Settings

_WORDS = re.compile(r"\s*\S+|\s+")
RULES = "echo/1"
"""Raised when the same message would be cut or said differently."""


class Echo:
    """A token is a word with the white space before it. It tells no ids: a resume goes by count and text."""

    traits = Traits("echo", hashlib.sha256(RULES.encode()).hexdigest()[:32], resumes_seeded=True)

    def __init__(self, token_delay: float) -> None:
        self._delay = token_delay

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
        """The words of the last user message."""
        refuse_choices(question)
        words = _WORDS.findall(_last_said(question))
        writer = Writer(question, prompt_words(question), lambda at: words[at], lambda: "")
        before = question.resume.seq if question.resume else 0
        if before > len(words):
            raise CannotResume("there are more tokens before the seam than the answer has")
        unsaid = writer.replay(tuple(range(before)))
        if unsaid is not None:
            yield unsaid
        for at in range(before, len(words)):
            if writer.ended():
                return
            await asyncio.sleep(self._delay)
            yield writer.token(at, tell_id=False)
        if not writer.ended():
            yield writer.end()


def refuse_choices(question: Question) -> None:
    """Raises `InvalidQuestion` where several choices are asked of a backend that gives one."""
    if question.parameters.choices != 1:
        raise InvalidQuestion("`n`: this backend gives one choice")


def prompt_words(question: Question) -> int:
    """What the prompt counts."""
    return sum(len(_WORDS.findall(message.plain_text())) for message in question.messages)


def build(settings: Settings) -> Backend:
    """Makes it."""
    return Echo(settings.token_delay)


def _last_said(question: Question) -> str:
    said = [message.plain_text() for message in question.messages if message.role == "user"]
    return said[-1] if said else question.messages[-1].plain_text()
