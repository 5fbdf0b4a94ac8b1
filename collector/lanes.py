"""All lanes together: one courier each, so that trouble stays where it is (G6)."""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from collector.buffer import LaneState
from collector.config import Config
from collector.courier import Common, Courier, Source, Tally, Timekeeper, Upstream
from collector.kinds import Lane
from collector.logs import logger
from collector.patience import LaneStatus
from collector.retry import Wave
from collector.sizes import LearnedSizes
from collector.waiting import SystemTimer, Timer
from collector.work import Work
from tracker.time import Clock, SystemClock

__all__ = ["LaneStatus", "Lanes", "Undelivered", "Upstream"]

log = logger("lanes")
T = TypeVar("T")


class Buffer(Source, Protocol):
    """The part of the buffer that the lanes together need."""

    def lanes(self) -> list[LaneState]: ...
    def on_records(self, listener: Callable[[Lane], None], /) -> None: ...
    async def run(self, unit: Callable[[Work], T], /) -> T: ...


@dataclass(frozen=True)
class Undelivered:
    """What a drain left of one lane, and why."""

    lane: Lane
    pending: int
    """Records, those aside included."""
    aside: int
    state: str
    reason: str | None

    @property
    def stuck(self) -> bool:
        """Whether nothing will move soon by itself: paused, or all of it waits aside."""
        return self.state == "paused" or self.pending == self.aside


class Lanes:
    """Delivers what the buffer holds. `start`, then `stop`; belongs to the loop that starts it."""

    def __init__(
        self,
        buffer: Buffer,
        upstream: Upstream,
        keeper: Timekeeper,
        config: Config,
        *,
        clock: Clock | None = None,
        timer: Timer | None = None,
        chance: Callable[[], float] = random.random,
        tally: Tally | None = None,
        on_end: Callable[["asyncio.Task[None]"], None] | None = None,
    ) -> None:
        """`on_end` hears of a courier that ended: its lane would else stand still for ever.

        Raises ValueError, saying what is wrong, for a ``dead.wave`` that is none."""
        Wave.parse(config.dead.wave)
        self._buffer = buffer
        self._on_end = on_end
        self._common = Common(
            buffer,
            upstream,
            keeper,
            config,
            clock or SystemClock(),
            timer or SystemTimer(),
            chance,
            LearnedSizes(config.batch, buffer),
            tally,
        )
        self._couriers: dict[Lane, Courier] = {}
        self._tasks: dict[Lane, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Begin to deliver."""
        common = self._common
        now = common.clock.boot_ms()
        # a whole shop gets its power back in the same second
        common.starts_ms = now + round(common.chance() * common.config.delivery.startup_jitter * 1000)
        await common.sizes.load(now)
        self._buffer.on_records(self._arrived)
        for state in self._buffer.lanes():
            if state.pending:
                self._arrived(state.lane)

    def activity(self) -> Mapping[Lane, LaneStatus]:
        """What each lane is doing; lanes without records since the start are missing."""
        return {lane: courier.status for lane, courier in self._couriers.items()}

    def pulses(self) -> Mapping[Lane, int]:
        """The lanes that should get on and do not, each with a number that changes when it does after all."""
        pulses = ((lane, courier.pulse) for lane, courier in self._couriers.items())
        return {lane: pulse for lane, pulse in pulses if pulse is not None}

    def resume(self, lane: Lane | None = None) -> int:
        """Let a lane, or all, try at once and count its refusals anew; how many were told."""
        couriers = [courier for of, courier in self._couriers.items() if lane in (None, of)]
        for courier in couriers:
            courier.resume()
        return len(couriers)

    def nudge(self) -> None:
        """Let every lane try at once, as when credentials changed."""
        for courier in self._couriers.values():
            courier.nudge()

    def hurry(self) -> None:
        """Deliver everything at once: no lane lingers until it is empty."""
        for courier in self._couriers.values():
            courier.hurried = True
            courier.nudge()

    async def drain(self, timeout: float | None = None) -> list[Undelivered]:
        """Deliver everything; what is left when `timeout` seconds are over, empty when nothing is.

        Without a timeout it returns when only what is stuck is left.
        """
        common = self._common
        ends_ms = None if timeout is None else common.clock.boot_ms() + timeout * 1000
        self.hurry()
        while left := self._undelivered():
            if common.stop.is_set() or (ends_ms is None and all(lane.stuck for lane in left)):
                break
            seconds = None if ends_ms is None else (ends_ms - common.clock.boot_ms()) / 1000
            if seconds is not None and seconds <= 0:
                break
            await common.timer.wait(common.changed, seconds)
            common.changed.clear()
        return left

    async def stop(self, deadline_s: float) -> None:
        """Begin nothing more; let requests in flight finish and be settled, then give up on them.

        What is not confirmed stays pending.
        """
        self._common.stop.set()
        self._common.changed.set()
        self.nudge()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks.values(), timeout=deadline_s)
            for task in late:
                task.cancel()
            if late:
                log.warning("lanes.gave_up", requests=len(late))
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()

    def _arrived(self, lane: Lane) -> None:
        if self._common.stop.is_set():
            return
        courier = self._couriers.get(lane)
        if courier is None:
            courier = self._couriers[lane] = Courier(lane, self._common)
            task = self._tasks[lane] = asyncio.create_task(courier.run(), name=f"tillpost-{lane}")
            if self._on_end is not None:
                task.add_done_callback(self._on_end)
        courier.came()

    def _undelivered(self) -> list[Undelivered]:
        idle = LaneStatus()
        left = []
        for row in self._buffer.lanes():
            if row.pending:
                doing = self._couriers[row.lane].status if row.lane in self._couriers else idle
                left.append(Undelivered(row.lane, row.pending, row.aside, doing.state, doing.last_error))
        return left
