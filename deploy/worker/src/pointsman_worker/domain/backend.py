"""What a backend is."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from pointsman_worker.domain.model import Piece, Question


@dataclass(frozen=True, slots=True)
class Traits:
    """What a started backend says of itself.

    `fingerprint` is equal for two workers if, and only if, one can continue what the other began; empty where answers
    cannot be continued. `resumes_seeded`: a continued answer is sampled as if it had not been interrupted.
    """

    name: str
    fingerprint: str = ""
    resumes_seeded: bool = False


class Backend(Protocol):
    """Runs a model, or speaks to who does.

    `generate` is only asked what `traits` allow: a question with a resume has the backend's own fingerprint. It raises
    the failures of `domain.failures`, and nothing else on purpose. Closing the generator stops the model at once.
    """

    @property
    def traits(self) -> Traits:
        """What it can do. Valid once `start` returned."""
        ...

    async def start(self) -> None:
        """Loads what it needs. Raises `StartFailed` with one line that says what to do."""
        ...

    async def close(self) -> None:
        """Gives everything back."""
        ...

    def generate(self, question: Question) -> AsyncGenerator[Piece, None]:
        """Answers, piece by piece. With a resume: only what comes after the seam."""
        ...

    async def trouble(self) -> str:
        """Why it could not answer right now, in a few words that may be logged; empty where it could."""
        ...

    def kv_used_permille(self) -> int | None:
        """Use of the key-value cache in thousandths, where it is known."""
        ...


class StartFailed(Exception):
    """A backend, or the process, cannot start. The text is one line that says what to do."""
