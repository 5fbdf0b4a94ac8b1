"""Waiting: for an event or a while, for work that somebody else has already begun, for when we were told to return."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from collector.outcomes import Later
from tracker.time import Clock

T = TypeVar("T")


class Timer(Protocol):
    """How time passes; tests pass their own."""

    async def wait(self, event: asyncio.Event, seconds: float | None) -> bool:
        """Return True when `event` is set, False when the seconds are over first; None: no end."""
        ...


class SystemTimer:
    """Time that really passes."""

    async def wait(self, event: asyncio.Event, seconds: float | None) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), seconds)
        return event.is_set()


class Shared(Generic[T]):
    """Work that is done once for everybody who asks while it is under way; all get its result."""

    def __init__(self, work: Callable[[], Awaitable[T]], name: str) -> None:
        self._work = work
        self._name = name
        self._under_way: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        if self._under_way is None:
            self._under_way = asyncio.create_task(self._do(), name=self._name)
        # one who gives up must not take the work from the others
        return await asyncio.shield(self._under_way)

    async def _do(self) -> T:
        try:
            return await self._work()
        finally:
            self._under_way = None

    async def close(self) -> None:
        """End what is under way."""
        if (task := self._under_way) is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Embargo:
    """When the upstream said to come back to something that several of us ask for: nobody does before."""

    def __init__(self, clock: Clock, max_s: float) -> None:
        """`max_s`: for how long at most it is believed, seconds."""
        self._clock = clock
        self._max_s = max_s
        self._until_ms = 0
        self._told: Later | None = None

    def note(self, told: Later) -> None:
        """The upstream answered this just now."""
        if told.retry_after_s is not None:
            self._told = told
            self._until_ms = self._clock.boot_ms() + round(min(told.retry_after_s, self._max_s) * 1000)

    def told(self) -> Later | None:
        """What it answered, with the time that is left; None when it may be asked again."""
        left_ms = self._until_ms - self._clock.boot_ms()
        return None if self._told is None or left_ms <= 0 else replace(self._told, retry_after_s=left_ms / 1000)
