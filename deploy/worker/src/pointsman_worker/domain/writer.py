"""Writes the answer of a backend that makes tokens itself (all but `openai`): stop texts, length, resume."""

from __future__ import annotations

from collections.abc import Callable

from pointsman_worker.domain.failures import CannotResume
from pointsman_worker.domain.model import Piece, Question, Usage
from pointsman_worker.domain.text import Seam, StopFilter


class Writer:
    """Makes pieces of tokens. `speak` turns one token into text, `silence` gives what it held back.

    With a resume it is first fed the tokens before the seam, by `replay`; what they say is hidden, what they held back
    is not. `ended` says whether the answer has.
    """

    def __init__(
        self, question: Question, prompt_tokens: int, speak: Callable[[int], str], silence: Callable[[], str]
    ) -> None:
        self._speak = speak
        self._silence = silence
        self._stops = StopFilter(question.parameters.stop)
        self._max = question.parameters.max_tokens
        self._prompt_tokens = prompt_tokens
        self._resume = question.resume
        self.count = 0
        self.cached_tokens = 0
        self._ended = False

    def replay(self, tokens: tuple[int, ...]) -> Piece | None:
        """Takes the tokens before the seam. A piece: what the seam left unsaid, or the answer's end."""
        if self._resume is None:
            return None
        seam = Seam(self._resume.text)
        unsaid = "".join(seam.feed(self._stops.feed(self._speak(token))) for token in tokens)
        self.count = len(tokens)
        if self._stops.reached():
            seam.check_passed()
            return self._end(unsaid, 0, (), "stop")
        if self._max is not None and self.count >= self._max:
            unsaid += seam.feed(self._stops.feed(self._silence()) + self._stops.rest())
            seam.check_passed()
            return self._end(unsaid, 0, (), "stop" if self._stops.reached() else "length")
        seam.check_passed()
        return Piece(text=unsaid) if unsaid else None

    def token(self, token: int, tell_id: bool = True) -> Piece:
        """The piece of one more token; ends the answer at a stop text or at its length."""
        self.count += 1
        ids = (token,) if tell_id else ()
        text = self._stops.feed(self._speak(token))
        if self._stops.reached():
            return self._end(text, 1, ids, "stop")
        if self._max is not None and self.count >= self._max:
            text += self._stops.feed(self._silence())
            reason = "stop" if self._stops.reached() else "length"
            return self._end(text + self._stops.rest(), 1, ids, reason)
        return Piece(text=text, tokens=1, token_ids=ids)

    def ended(self) -> bool:
        """Whether the last piece has been made."""
        return self._ended

    def end(self, reason: str = "stop") -> Piece:
        """The last piece of an answer that the model ended."""
        text = self._stops.feed(self._silence())
        return self._end(text + self._stops.rest(), 0, (), "stop" if self._stops.reached() else reason)

    def _end(self, text: str, tokens: int, ids: tuple[int, ...], reason: str) -> Piece:
        self._ended = True
        usage = Usage(self._prompt_tokens, self.count, self.cached_tokens)
        return Piece(text=text, tokens=tokens, token_ids=ids, finish_reason=reason, usage=usage)


def resumed_ids(question: Question) -> tuple[int, ...]:
    """The ids before the seam, of a backend that cannot do without. Raises `CannotResume` where they were not told."""
    resume = question.resume
    if resume is None:
        return ()
    if resume.seq and not resume.token_ids:
        raise CannotResume("this backend continues from token ids, and the request tells none")
    return resume.token_ids
