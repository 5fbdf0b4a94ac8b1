"""Machines whose clocks show what they like, one true time for all, and the strict fake that knows it.

A whole collector runs on virtual time, with real files and real sockets: hours pass in milliseconds.
"""

import asyncio
import heapq
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from collector.app import Parts
from collector.settings import embedded
from collector.testing import FakeUpstream
from tests.collector.virtual_time import VirtualTime
from tracker import Client, wire
from tracker.events import Custom
from tracker.receipt import Receipt
from tracker.salt import TimeOrdered
from tracker.stamp import Stamper, clock_header
from tracker.time import parse_ms

START = 1_798_000_000_000  # late in 2026
SECOND, HOUR, DAY = 1_000, 3_600_000, 86_400_000
YEAR = 365 * DAY


class Machine:
    """One boot of one machine; a `Clock`. `error_ms`: its wall clock minus the true time."""

    def __init__(self, world: "World", boot: str, error_ms: int = 0) -> None:
        self.world, self.boot, self.error_ms = world, boot, error_ms
        self._started = world.now - 5_000
        self.stamper = Stamper(self, world.salts)
        """Of the one tracker there."""

    def wall_ms(self) -> int:
        return self.world.now + self.error_ms

    def boot_ms(self) -> int:
        return self.world.now - self._started

    def boot_id(self) -> str:
        return self.boot

    def empty_battery(self) -> "Machine":
        """Its wall clock shows 1970."""
        self.error_ms = 5_000 - self.world.now
        return self


class Made(NamedTuple):
    """A record the application made."""

    true_ms: int
    given: str | None


class World:
    """See the module. `skew_ms`: the upstream's clock minus the true time."""

    def __init__(self, skew_ms: int = 0) -> None:
        self.skew_ms = skew_ms
        self.salts = TimeOrdered().at
        self.made: dict[str, Made] = {}
        self._requests = 0
        self._buffers: list[Any] = []
        self.time = VirtualTime(busy=self._busy)

    @property
    def now(self) -> int:
        """The true time, ms since 1970."""
        return START + round(self.time.now)

    def _busy(self) -> bool:
        return self._requests > 0 or any(not buffer._idle.is_set() for buffer in self._buffers)

    @asynccontextmanager
    async def upstream(self, **switches: Any) -> AsyncIterator[FakeUpstream]:
        """The fake; afterwards everything it stored must be as it was made."""
        fake = FakeUpstream("k", wall_ms=lambda: self.now + self.skew_ms, **switches)
        async with self.time, fake:
            self.fake = fake
            yield fake

    @asynccontextmanager
    async def collector(self, machine: Machine, folder: Path, **config: Any) -> AsyncIterator["Till"]:
        """A collector on this machine, its buffer in `folder`."""
        sections: dict[str, Any] = {"batch": {"linger": 0}, "shutdown": {"grace": 0.5}, "buffer": {"max_size": "4MiB"}}
        settings = embedded(
            buffer=folder / "tillpost.db",
            upstream=self.fake.url,
            api_key="k",
            config={**sections, **config},
            environ={},
        ).check()
        parts = Parts(settings, clock=machine)
        parts.timer = self.time  # type: ignore[assignment]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("collector.app.QUIET_S", 0.0)
            patch.setattr("collector.app.LOOK_EVERY_S", 1e9)  # the disk is not what is tested here
            patch.setattr("collector.app.REVIVE_EVERY_S", 1e9)
            await parts.open()
            request = parts.http.request

            async def counted(*args: Any, **named: Any) -> Any:
                self._requests += 1
                try:
                    return await request(*args, **named)
                finally:
                    self._requests -= 1

            parts.http.request = counted  # type: ignore[method-assign]
            self._buffers.append(parts.buffer)
            try:
                yield Till(self, parts, folder)
            finally:
                self._buffers.remove(parts.buffer)
                await parts.close()

    async def after(self, seconds: float) -> None:
        await self.time.wait(asyncio.Event(), seconds)

    def suspended(self, hours: float) -> None:
        """All machines sleep: the time since boot goes on, timers stand still."""
        ms = hours * HOUR
        self.time.now += ms
        self.time._sleepers = [(at + ms, number, over) for at, number, over in self.time._sleepers]
        heapq.heapify(self.time._sleepers)

    def check(self, within_ms: int = 3_100, but: Sequence[str] = ()) -> None:
        """What arrived: once, never in the future, given times as given, ours true to the upstream's clock.

        `but`: salts whose times may be off by more, because they could only be estimated.
        """
        assert self.fake.violations == []
        assert self.fake.altered == 0
        entries = self.fake.entries
        assert len({entry.salt for entry in entries}) == len(entries)
        for entry in entries:
            made = self.made[str(entry.salt)]
            assert entry.original_time is not None
            if made.given is not None:
                assert entry.original_time == made.given
            elif entry.salt not in but:
                error = entry.instant_ms - made.true_ms - self.skew_ms
                assert abs(error) <= within_ms, f"{error} ms off"


class Till:
    """A running collector."""

    def __init__(self, world: World, parts: Parts, folder: Path) -> None:
        self.world, self.parts, self.folder = world, parts, folder

    @property
    def ledger(self) -> dict[str, int]:
        return self.parts.buffer.ledger()

    async def sell(self, machine: Machine, count: int = 1, *, given_ms: int | None = None) -> list[str]:
        """Records a tracker on `machine` stamps, or with a time the application gives; their salts. On disk then."""
        receipts = [stamp(machine, given_ms) for _ in range(count)]
        await self.take(machine, receipts)
        return [receipt.salt for receipt in receipts]

    async def take(self, machine: Machine, receipts: list[Receipt]) -> None:
        """Post what a tracker stamped, as its sender does."""
        body = b"[" + b",".join(receipt._body for receipt in receipts) + b"]"
        await self.post(body, {wire.CLOCK_HEADER: clock_header(machine, receipts)})

    async def post(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        status, _, answer = await self.parts.server.receive(wire.EVENTS_BATCH, body, headers or {})
        assert status == 202, answer

    async def until(self, what: Callable[[], object], hours: float = 48.0) -> None:
        """Wait until it is so, by the virtual clock."""
        end, pause = self.world.time.now + hours * HOUR, 0.1
        while not what():
            assert self.world.time.now < end, (self.ledger, dict(self.parts.lanes.activity()))
            await self.world.after(pause)
            pause = min(pause * 1.1, 60.0)

    async def delivered(self, count: int, hours: float = 48.0) -> None:
        """Wait until the fake holds so many and nothing is left."""
        await self.until(lambda: self.world.fake.stored_count >= count and self.ledger["pending"] == 0, hours)
        assert self.world.fake.stored_count == count

    def as_killed(self, folder: Path) -> Path:
        """A copy of the buffer's files as SIGKILL would leave them now."""
        folder.mkdir()
        for name in ("tillpost.db", "tillpost.db-wal", "tillpost.db.mark"):
            if (file := self.folder / name).exists():
                shutil.copyfile(file, folder / name)
        return folder


def stamp(machine: Machine, given_ms: int | None = None) -> Receipt:
    """A record as a tracker on this machine makes it."""
    world = machine.world
    given = None if given_ms is None else datetime.fromtimestamp(given_ms / 1000, UTC)
    receipt = machine.stamper.stamp(Custom(client=Client(email="anna@example.com"), action="a.b", time=given))
    world.made[receipt.salt] = Made(world.now, None if given_ms is None else receipt.time)
    if given_ms is not None:
        assert abs(parse_ms(receipt.time) - given_ms) <= 1
    return receipt
