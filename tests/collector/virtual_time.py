"""Time that passes when everybody waits: hours in milliseconds, and no sleeping tests."""

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

T0 = 1_798_000_000_000  # late in 2026


class VirtualTime:
    """A clock and a timer. When nothing else happens it jumps to the next moment somebody waits for.

    Use as ``async with``. Real input and output would be jumped over: `busy` says when not to jump.
    """

    def __init__(self, wall_ms: int = T0, boot: str = "boot-1", busy: Callable[[], bool] = lambda: False) -> None:
        self.busy = busy
        self.boot = boot
        self.now = 5_000.0
        self.wall_minus_boot = wall_ms - 5_000
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._number = count()

    def wall_ms(self) -> int:
        return round(self.now) + self.wall_minus_boot

    def boot_ms(self) -> int:
        return round(self.now)

    def boot_id(self) -> str:
        return self.boot

    async def wait(self, event: asyncio.Event, seconds: float | None) -> bool:
        if event.is_set() or (seconds is not None and seconds <= 0):
            await asyncio.sleep(0)
            return event.is_set()
        if seconds is None:
            return await event.wait()
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds * 1000, next(self._number), over))
        is_set = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait((over, is_set), return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
            is_set.cancel()
        return event.is_set()

    async def __aenter__(self) -> "VirtualTime":
        self._jumper = asyncio.create_task(self._jump())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._jumper.cancel()
        await asyncio.gather(self._jumper, return_exceptions=True)

    async def _jump(self) -> None:
        while True:
            quiet = 0
            while quiet < 30:  # long enough for everything that is ready to run
                await asyncio.sleep(0)
                quiet = 0 if self.busy() else quiet + 1
            while self._sleepers and self._sleepers[0][2].done():
                heapq.heappop(self._sleepers)
            if self._sleepers:
                at, _, over = heapq.heappop(self._sleepers)
                self.now = max(self.now, at)
                over.set_result(None)
            else:
                await asyncio.sleep(0.001)
