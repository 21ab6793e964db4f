"""Counts an answer: each token has one position, each choice one end, and the bill matches.

Backends are programs of others. What they say is checked here once, so that whatever leaves the worker obeys the wire:
ids are as many as tokens, nothing follows an end, and no more tokens come than were asked for.
"""

from __future__ import annotations

from dataclasses import replace

from pointsman_worker.domain.failures import BackendFailed
from pointsman_worker.domain.model import FINISH_REASONS, Chunk, Piece, Question, Usage


class Answer:
    """One answer under way. `tokens` counts what this worker generated, not what came before a seam."""

    def __init__(self, question: Question) -> None:
        self._start = question.resume.seq if question.resume else 0
        self._choices = max(1, question.parameters.choices)
        self._max = question.parameters.max_tokens
        self._next: dict[int, int] = {}
        self._finished: set[int] = set()
        self.usage: Usage | None = None
        self.tokens = 0

    @property
    def complete(self) -> bool:
        """Whether every choice has ended."""
        return len(self._finished) == self._choices

    def seq(self, choice: int = 0) -> int:
        """The position of the next token of a choice."""
        return self._next.get(choice, self._start)

    def place(self, piece: Piece) -> Chunk:
        """Puts a piece at its position. Raises `BackendFailed` where it has none."""
        self._check(piece)
        if piece.usage is not None:
            self.usage = piece.usage
        seq = self.seq(piece.choice)
        self._next[piece.choice] = seq + piece.tokens
        self.tokens += piece.tokens
        if piece.finish_reason:
            self._finished.add(piece.choice)
        return Chunk(seq=seq, piece=piece)

    def bill(self, chunk: Chunk) -> Chunk:
        """The last chunk, with the bill on it where the backend told one."""
        return replace(chunk, piece=replace(chunk.piece, usage=self.usage))

    def _check(self, piece: Piece) -> None:
        if not 0 <= piece.choice < self._choices:
            raise BackendFailed(f"the backend spoke of choice {piece.choice} of {self._choices}")
        if piece.choice in self._finished and piece.says_something:
            raise BackendFailed("the backend went on after the end of the answer")
        if piece.token_ids and len(piece.token_ids) != piece.tokens:
            raise BackendFailed("the backend told other ids than tokens")
        if piece.finish_reason and piece.finish_reason not in FINISH_REASONS:
            raise BackendFailed("the backend ended the answer for a reason that the wire does not know")
        exact = bool(piece.token_ids)
        if exact and self._max is not None and self.seq(piece.choice) + piece.tokens > self._max:
            raise BackendFailed(f"the backend generated more than the {self._max} tokens asked for")
