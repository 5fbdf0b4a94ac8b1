"""Waiting: for an event or a while, and for work that somebody else has already begun."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

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
