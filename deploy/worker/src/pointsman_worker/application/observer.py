"""Who is told how each request went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pointsman_worker.domain.model import Usage


@dataclass(slots=True)
class Record:
    """One request's story: no text of anybody, no key. Times in seconds.

    `outcome` is `ok`, `cancelled` or one of the outcomes in `domain.failures`; `cause` names the kind of an error and
    where it was raised, never its text. `session_id` is a keyed hash.
    """

    request_id: str = ""
    session_id: str = ""
    trace_id: str = ""
    span_id: str = ""
    outcome: str = ""
    cause: str = ""
    tokens: int = 0
    resumed_at: int | None = None
    duration: float = 0.0
    first_token: float | None = None
    usage: Usage | None = None
    trace_flags: str = "01"
    retries: int | None = None


class Observer(Protocol):
    """Told once for each request, at its end. Must neither wait nor fail."""

    def request_ended(self, record: Record) -> None:
        """The request is over."""
        ...


class Observers:
    """Several observers as one."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def request_ended(self, record: Record) -> None:
        """Tells each of them."""
        for observer in self._observers:
            observer.request_ended(record)
