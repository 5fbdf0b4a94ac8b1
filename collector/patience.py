"""When a lane may send again: backing off, pausing, probing, and what it says of that."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from collector.config import DeliveryConfig
from collector.outcomes import Later
from collector.retry import delay_s
from collector.waiting import Timer
from tracker.time import Clock

OUTAGE: Final = 3
"""After so many failures in a row nobody waits for a batch to fill any more."""
_LOOK_S: Final = 30.0
"""A timer stands still while the machine is suspended, the boot clock does not: so it is looked at now and then."""


class Stopped(Exception):
    """Nothing more is to be begun."""


@dataclass
class LaneStatus:
    """What a lane is doing, for people; holds nothing the upstream said."""

    state: str = "idle"
    """idle, sending, backing-off or paused."""
    attempts: int = 0
    """Failed attempts since the last success; being offline is not one."""
    last_error: str | None = None


class Patience:
    """One lane's waiting. Times are those of the boot clock; `stop` ends every wait with Stopped."""

    def __init__(
        self,
        delivery: DeliveryConfig,
        clock: Clock,
        timer: Timer,
        chance: Callable[[], float],
        *,
        stop: asyncio.Event,
        changed: asyncio.Event,
        starts_ms: int,
        log: Any,
        work_s: float,
    ) -> None:
        """`work_s`: what lies between two waits takes no longer, seconds."""
        self.status = LaneStatus()
        self.nudged = asyncio.Event()
        """Set to end a wait: by a drain, a resume or a stop."""
        self.paused: str | None = None
        """Why the lane is paused."""
        self.failures = 0
        """In a row, being offline included."""
        self._delivery = delivery
        self._clock = clock
        self._timer = timer
        self._chance = chance
        self._stop = stop
        self._changed = changed
        self._log = log
        self.beats = 0
        """Rises whenever the lane gets on, if only from one wait to the next."""
        self._work_s = work_s
        self._until = math.inf
        self._due_ms = starts_ms
        self._floor_ms = starts_ms
        """As `_due_ms`, but for a nudge too."""

    @property
    def in_trouble(self) -> bool:
        """Whether to find out how things are comes before filling batches."""
        return self.paused is not None or self.failures >= OUTAGE

    def expect(self, seconds: float | None) -> None:
        """What begins now comes back within so many seconds; None: when records arrive.

        By the loop's clock, as its timers: it stands still while the machine is suspended.
        """
        self.beats += 1
        self._until = math.inf if seconds is None else asyncio.get_running_loop().time() + seconds

    def is_overdue(self, pending: int) -> bool:
        """Whether the lane should have got on by now; `pending` records are waiting for it."""
        if self._until == math.inf:
            return pending > 0
        return asyncio.get_running_loop().time() > self._until

    def doing(self, state: str) -> None:
        """Say what the lane does, unless it is paused and only probes."""
        if self.paused is None:
            self.status.state = state

    def delay_s(self, failures: int, outcome: Later | None = None) -> float:
        """How long to wait after so many failures in a row, seconds."""
        return delay_s(
            failures,
            base_s=self._delivery.backoff_base,
            max_s=self._delivery.backoff_max,
            chance=self._chance,
            retry_after_s=None if outcome is None else outcome.retry_after_s,
            retry_after_max_s=self._delivery.retry_after_max,
        )

    def back_off(self, outcome: Later) -> None:
        """Send nothing for a while; a paused lane stays paused."""
        self.failures += 1
        if not outcome.offline:
            self.status.attempts += 1
        self.status.last_error = outcome.reason
        seconds = self.delay_s(self.failures, outcome)
        if self.paused is not None:
            seconds = max(seconds, self._delivery.pause_probe)
        self.doing("backing-off")
        self._rest(seconds, min(outcome.retry_after_s or 0.0, self._delivery.retry_after_max))
        self._log.info("lane.backing_off", reason=outcome.reason, failures=self.failures, seconds=round(seconds, 3))

    def pause(self, reason: str, seconds: float | None = None) -> None:
        """Raise an alarm, and probe after so many seconds, by default ``delivery.pause_probe``."""
        if reason != self.paused:
            self._log.error("lane.paused", reason=reason)
        self.paused = reason
        self.status.state, self.status.last_error = "paused", reason
        self._rest(self._delivery.pause_probe if seconds is None else seconds)

    def answered(self, said: str | None) -> None:
        """The upstream dealt with our records: there is no outage."""
        if self.failures >= OUTAGE and self.paused is None:
            self._log.info("lane.recovered", failures=self.failures)
        self.failures = 0
        self.status.attempts = 0
        self.status.last_error = said

    def resumed(self) -> None:
        """The reason to pause is gone, if there was one."""
        if self.paused is None:
            return
        self._log.info("lane.resumed", was=self.paused)
        self.paused = None
        self.status.state, self.status.last_error = "sending", None
        self._due_ms = self._floor_ms = 0
        self._changed.set()

    async def hold(self) -> None:
        """Wait until something may be sent. A nudge ends the wait, though not what the upstream asked for."""
        while (left_ms := self._due_ms - self._clock.boot_ms()) > 0:
            if await self.wait(self.nudged, min(left_ms / 1000, _LOOK_S)):
                self._due_ms = self._floor_ms
        self.nudged.clear()
        if self._stop.is_set():
            raise Stopped

    async def wait(self, event: asyncio.Event, seconds: float | None) -> bool:
        """Return True when `event` was set, which is then cleared. Raises Stopped."""
        self.expect(seconds if seconds is None else seconds + self._work_s)
        happened = await self._timer.wait(event, seconds)
        self.expect(self._work_s)
        event.clear()
        if self._stop.is_set():
            raise Stopped
        return happened

    def _rest(self, seconds: float, floor_s: float = 0.0) -> None:
        now = self._clock.boot_ms()
        self._due_ms, self._floor_ms = now + round(seconds * 1000), now + round(floor_s * 1000)
        self._changed.set()
