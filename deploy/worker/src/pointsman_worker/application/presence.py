"""Keeps the worker known to the registry: registers, says how it is, registers again when it was forgotten."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

BACKOFF_SECONDS = 0.5
"""The first wait after a failure; doubled each time."""
BACKOFF_SECONDS_MAX = 30.0
"""A registry that comes back is noticed within this."""
LEAVE_SECONDS = 3.0
"""How long a leaving worker waits for the registry."""


UNDER_WAY_SECONDS = 2.0
"""How long it waits before that for what it asked the registry last, which cannot be called back."""


class RegistryLost(Exception):
    """The registry answered, and does not know this worker."""


class RegistryDown(Exception):
    """The registry did not do what it was asked. The text may be logged."""


class Registry(Protocol):
    """Where gateways look for workers. Each call ends by itself within some seconds."""

    async def register(self) -> None:
        """Makes this worker known. Raises `RegistryDown`."""
        ...

    async def report(self, trouble: str) -> None:
        """Says that it lives, and what troubles it. Raises `RegistryLost` or `RegistryDown`."""
        ...

    async def deregister(self) -> None:
        """Takes it off. Raises `RegistryDown`."""
        ...


class Presence:
    """Runs until `leave`. `changed` is called with whether the registry knows the worker, and why not."""

    def __init__(
        self,
        registry: Registry,
        trouble: Callable[[], Awaitable[str]],
        changed: Callable[[bool, str], None],
        report_seconds: float,
        backoff_seconds: float = BACKOFF_SECONDS,
    ) -> None:
        self._registry = registry
        self._trouble = trouble
        self._changed = changed
        self._report_seconds = report_seconds
        self._backoff_first = backoff_seconds
        self._backoff = backoff_seconds
        self._task: asyncio.Task[None] | None = None
        self._under_way: asyncio.Task[None] | None = None
        self.registered = False

    def start(self) -> None:
        """Begins in the background: a worker serves whether the registry is up or not."""
        self._task = asyncio.create_task(self._run())

    async def leave(self) -> None:
        """Stops, and takes the worker off the registry; one try, bounded in time.

        What was asked before is waited for: a registration that arrived behind the farewell would outlive the worker.
        """
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        if self._under_way is not None:
            await asyncio.wait({self._under_way}, timeout=UNDER_WAY_SECONDS)
            self._under_way.cancel()
            await asyncio.gather(self._under_way, return_exceptions=True)
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._registry.deregister()
            self._say(False, "left")
        except (RegistryDown, TimeoutError) as error:
            self._say(False, f"left without taking leave: {str(error) or 'no answer in time'}")

    async def _run(self) -> None:
        while True:
            try:
                self._under_way = asyncio.create_task(self._step())
                await asyncio.shield(self._under_way)
                self._backoff = self._backoff_first
                await asyncio.sleep(self._report_seconds)
            except RegistryLost:
                self._say(False, "the registry forgot this worker")
                await asyncio.sleep(self._backoff_first)
            except RegistryDown as error:
                self._say(False, str(error))
                await asyncio.sleep(self._backoff * random.uniform(0.5, 1.0))  # noqa: S311 - jitter is no secret
                self._backoff = min(BACKOFF_SECONDS_MAX, self._backoff * 2)

    async def _step(self) -> None:
        if not self.registered:
            await self._registry.register()
            self._say(True, "")
        await self._registry.report(await self._trouble())

    def _say(self, registered: bool, why: str) -> None:
        self.registered = registered
        self._changed(registered, why)
