"""Pulls from a backend without ever losing a piece, and with a look at the clock once a second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from pointsman_worker.domain.model import Piece


class Pump:
    """One backend's generator, pulled by a task, so that a wait can end while the pull goes on.

    One piece is pulled at a time: who does not take pieces slows the backend down.
    """

    def __init__(self, pieces: AsyncGenerator[Piece, None], expelled: asyncio.Event) -> None:
        self._pieces = pieces
        self._pull: asyncio.Task[Piece | None] | None = None
        self._expelled = asyncio.create_task(expelled.wait())
        self._closing: asyncio.Task[None] | None = None

    async def next(self, seconds: float) -> Piece | None:
        """The next piece, `None` at the end. Raises `TimeoutError` when none came in time, `Expelled` when told to."""
        if self._pull is None:
            self._pull = asyncio.create_task(self._next())
        await asyncio.wait({self._pull, self._expelled}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self._expelled.done():
            raise Expelled
        if not self._pull.done():
            raise TimeoutError
        pull, self._pull = self._pull, None
        return pull.result()

    async def close(self) -> None:
        """Stops the backend, to the end even where the caller of this is cancelled once more meanwhile.

        A cancelled gRPC call may cancel its handler twice; half a cleanup would leave the backend running.
        """
        self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        """What the backend raises while it is stopped is no news."""
        for task in (self._pull, self._expelled):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await asyncio.gather(self._pieces.aclose(), return_exceptions=True)

    async def _next(self) -> Piece | None:
        return await anext(self._pieces, None)


class Expelled(Exception):
    """The time for draining is over."""
