"""One question's way through the worker: checked, admitted, answered within its time, told to the observer."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from pointsman_worker.application.gate import DRAINING, Gate
from pointsman_worker.application.observer import Observer, Record
from pointsman_worker.application.pump import Expelled, Pump
from pointsman_worker.domain.answer import Answer
from pointsman_worker.domain.backend import Backend
from pointsman_worker.domain.failures import (
    BackendFailed,
    CannotResume,
    DeadlinePassed,
    Failure,
    InvalidQuestion,
    Unavailable,
    UnknownModel,
)
from pointsman_worker.domain.model import Chunk, Load, Piece, Question

LOAD_SECONDS = 1.0
"""How often a load report goes out, as the wire promises."""

Send = Callable[[Chunk], Awaitable[None]]
"""Takes a chunk to the caller, and waits where the caller does not take it."""


class Inference:
    """The worker, as one object: what it serves, and how it answers."""

    def __init__(self, model: str, backend: Backend, gate: Gate, observer: Observer, seconds_max: float) -> None:
        self.model = model
        self.backend = backend
        self.gate = gate
        self._observer = observer
        self._seconds_max = seconds_max
        self._expelled = asyncio.Event()

    def load(self) -> Load:
        """How busy it is right now."""
        gate = self.gate
        return Load(gate.queued, gate.running, gate.running_max, self.backend.kv_used_permille())

    async def answer(self, question: Question, seconds: float | None, send: Send, record: Record) -> None:
        """Answers `question` by calls of `send`, within `seconds` (`None`: the worker's own longest time).

        Raises a `Failure` of `domain.failures`, and nothing else, where the answer does not end well.
        """
        began = time.monotonic()
        allowed = self._seconds_max if seconds is None else min(seconds, self._seconds_max)
        run = _Run(self, question, send, record, began)
        record.resumed_at = question.resume.seq if question.resume else None
        try:
            async with asyncio.timeout(max(0.0, allowed)) as deadline:
                await run.go()
            record.outcome = "ok"
        except TimeoutError as error:
            if not deadline.expired():
                raise self._unexpected(record, error) from error
            record.outcome = DeadlinePassed.outcome
            raise DeadlinePassed("the deadline passed before the answer ended") from error
        except asyncio.CancelledError:
            late = seconds is not None and time.monotonic() - began >= seconds
            record.outcome = DeadlinePassed.outcome if late else "cancelled"
            raise
        except Failure as failure:
            record.outcome = failure.outcome
            record.cause = place(failure)
            raise
        except Exception as error:
            raise self._unexpected(record, error) from error
        finally:
            record.duration = time.monotonic() - began
            record.tokens, record.usage = run.answer.tokens, run.answer.usage
            self._observer.request_ended(record)

    def refused(self, record: Record, failure: Failure) -> None:
        """Tells the observer of a question that could not even be read."""
        record.outcome, record.cause = failure.outcome, place(failure)
        self._observer.request_ended(record)

    async def drain(self, seconds: float) -> bool:
        """Takes no more, lets what runs finish, then ends what is left. Whether all finished by themselves."""
        self.gate.drain()
        try:
            async with asyncio.timeout(seconds):
                await self.gate.idle()
            return True
        except TimeoutError:
            self._expelled.set()
            return False

    def check(self, question: Question) -> None:
        """Raises a `Failure` where the question is not for this worker."""
        if question.model != self.model:
            raise UnknownModel(f"this worker serves `{self.model}` and no other model")
        if not question.messages:
            raise InvalidQuestion("`messages` is empty: send at least one")
        resume = question.resume
        if resume is None:
            return
        traits = self.backend.traits
        if not traits.fingerprint:
            raise CannotResume(f"the backend `{traits.name}` cannot continue an answer")
        if resume.fingerprint != traits.fingerprint:
            raise CannotResume("the answer was begun by a worker with another fingerprint")
        if question.parameters.choices != 1:
            raise CannotResume("only an answer with one choice can be continued")

    @property
    def expelled(self) -> asyncio.Event:
        """Set when the time for draining is over."""
        return self._expelled

    def _unexpected(self, record: Record, error: Exception) -> BackendFailed:
        record.outcome = BackendFailed.outcome
        record.cause = place(error)
        return BackendFailed("the backend failed in a way nobody foresaw; the worker's log has the kind and the place")


class _Run:
    """One answer under way."""

    def __init__(self, worker: Inference, question: Question, send: Send, record: Record, began: float) -> None:
        self.answer = Answer(question)
        self._worker = worker
        self._question = question
        self._send = send
        self._record = record
        self._began = began
        self._reported: float | None = None

    async def go(self) -> None:
        self._worker.check(self._question)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._worker.gate.slot())
            pump = Pump(self._worker.backend.generate(self._question), self._worker.expelled)
            stack.push_async_callback(pump.close)
            try:
                await self._pass_on(pump)
            except Expelled as error:
                raise Unavailable(DRAINING) from error

    async def _pass_on(self, pump: Pump) -> None:
        """Sends pieces as they come. The one that completes the answer waits for the bill, which may come after it.

        A bill on its way, of a server that counts with every token, is known here and costs no message.
        """
        last: Chunk | None = None
        waiting_since = time.monotonic()
        while True:
            since = waiting_since if self._reported is None else self._reported
            try:
                piece = await pump.next(max(0.0, since + LOAD_SECONDS - time.monotonic()))
            except TimeoutError:
                await self._tell(Chunk(self.answer.seq(), Piece()))
                continue
            if piece is None:
                break
            chunk = self.answer.place(piece)
            if self.answer.complete and last is None:
                last = chunk
            elif last is None and (piece.says_something or piece.usage is None):
                await self._tell(chunk)
        if last is None:
            raise BackendFailed("the backend's answer broke off before its end")
        await self._tell(self.answer.bill(last), last=True)

    async def _tell(self, chunk: Chunk, *, last: bool = False) -> None:
        now = time.monotonic()
        first = self._reported is None
        if chunk.piece.tokens and self._record.first_token is None:
            self._record.first_token = now - self._began
        if first or last or now - (self._reported or 0.0) >= LOAD_SECONDS:
            self._reported = now
            fingerprint = self._worker.backend.traits.fingerprint if first else ""
            chunk = replace(chunk, load=self._worker.load(), fingerprint=fingerprint)
        await self._send(chunk)


def place(error: BaseException) -> str:
    """The kind of an error and where it was raised: what may be logged of it."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{at}"
