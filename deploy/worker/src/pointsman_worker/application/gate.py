"""Admission: so many run, so many wait, the rest is told when to come back."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pointsman_worker.domain.failures import Draining, Full

RETRY_MS_MIN = 100
"""Less would be a hammer."""
RETRY_MS_MAX = 30_000
"""More says nothing: by then the load is another."""
FIRST_GUESS_SECONDS = 1.0
"""How long a request takes, before the first has ended."""
SMOOTHING = 0.2
"""Weight of the newest duration: about the last ten count."""

DRAINING = "this worker is draining; ask another"
DRAINING_RETRY_MS = 5_000
"""By then a gateway has learned of others. As the worker in Rust says it."""


class Gate:
    """First come, first served. Never more than `running_max` at once, nor more than `queue_max` waiting."""

    def __init__(self, running_max: int, queue_max: int) -> None:
        self.running_max = running_max
        self._queue_max = queue_max
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._seconds = FIRST_GUESS_SECONDS
        self.draining = False

    @property
    def running(self) -> int:
        """Requests that run."""
        return self._running

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Runs its body in one of the places. Raises `Full`, or `Draining`."""
        await self._enter()
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds += SMOOTHING * (time.monotonic() - began - self._seconds)
            self._leave()

    def drain(self) -> None:
        """Takes no more, and sends away who waits: another worker serves them sooner."""
        self.draining = True
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(Draining(DRAINING, DRAINING_RETRY_MS))

    async def idle(self) -> None:
        """Returns when nothing runs."""
        await self._idle.wait()

    async def _enter(self) -> None:
        if self.draining:
            raise Draining(DRAINING, DRAINING_RETRY_MS)
        if self._running < self.running_max:  # Then nobody waits: a place that comes free is handed on.
            self._take()
            return
        if len(self._waiting) >= self._queue_max:
            raise Full("this worker is full", self._retry_after_ms())
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise

    def _give_up(self, waiter: asyncio.Future[None]) -> None:
        """A waiter went away: out of the queue, or, if its place came at that very moment, on to the next."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            self._leave()

    def _take(self) -> None:
        self._running += 1
        self._idle.clear()

    def _leave(self) -> None:
        """Gives the place to the next waiter, or back."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._running -= 1
        if self._running == 0:
            self._idle.set()

    def _retry_after_ms(self) -> int:
        """When one more place is likely to be free: a request's usual time, over the places, for all who wait."""
        seconds = self._seconds * (len(self._waiting) + 1) / self.running_max
        return int(min(RETRY_MS_MAX, max(RETRY_MS_MIN, seconds * 1000)))
