"""What happened lately, in bounded memory: records per minute, what was done today, errors. For the status page."""

from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from itertools import pairwise
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import msgspec

from collector.buffer import Unknown
from collector.logs import logger
from collector.troubles import advice, is_refusal
from collector.work import Work
from tracker.time import Clock, format_ms

log = logger("collector")
T = TypeVar("T")

MINUTES_MAX: Final = 24 * 60
"""How far back the minutes go."""
ERRORS_MAX: Final = 20
"""Errors remembered, the oldest forgotten first."""
_MINUTE_MS: Final = 60_000
_SAME_MS: Final = 10 * _MINUTE_MS
"""An error that comes back so soon is the same one."""
_LAST_DAY_MS: Final = 253_370_764_800_000  # 9999-01-01: an upstream may say anything
_NAME: Final = "today"


class Source(Protocol):
    """The part of the buffer that is looked at."""

    def ledger(self) -> dict[str, int]: ...
    async def run(self, unit: Callable[[Work], T], /) -> T: ...


class Point(NamedTuple):
    """The ledger at one moment."""

    boot_ms: int
    accepted: int
    delivered: int
    pending: int


class Start(msgspec.Struct):
    """The ledger when a day began."""

    day: str
    accepted: int
    delivered: int


class Happened(msgspec.Struct):
    """An error that lanes had, from its first to its last moment."""

    error: str
    lanes: set[str]
    since_ms: int
    until_ms: int | None = None
    """None while it lasts."""


class History:
    """Remembers; `look` every few seconds. Days are the machine's, by the best clock there is.

    Args:
        now_ms: the best time known, wall clock ms.
        is_sure: whether that is more than this machine's own clock.
    """

    def __init__(self, source: Source, clock: Clock, now_ms: Callable[[], int], is_sure: Callable[[], bool]) -> None:
        self._source = source
        self._clock = clock
        self._now_ms = now_ms
        self._is_sure = is_sure
        # one more than is shown: a minute is the difference between two points
        self._points = deque([self._point()], MINUTES_MAX + 1)
        self._errors: deque[Happened] = deque(maxlen=ERRORS_MAX)
        self._start: Start | None = None

    async def load(self) -> None:
        """Read where the day began, which an earlier run may have written."""

        def unit(work: Work) -> Any:
            return work.conn.execute("SELECT value FROM meta WHERE name = ?", (_NAME,)).fetchone()

        row = await self._source.run(unit)
        self._start = msgspec.json.decode(row[0], type=Start) if row else None
        await self._begin_day()

    async def look(self, errors: Mapping[str, str | None]) -> None:
        """Note what is new; `errors` is what each lane complains of now, None for nothing."""
        if self._clock.boot_ms() - self._points[-1].boot_ms >= _MINUTE_MS:
            self._points.append(self._point())
        self._note(errors)
        await self._begin_day()

    def minutes(self, count: int) -> dict[str, Any]:
        """``{"at": [...], "accepted": [...], "delivered": [...], "pending": [...]}``.

        The last `count` minutes and the one begun. `at` is when each ended, seconds since 1970; accepted and
        delivered are records within it, pending are those at its end.
        """
        now_ms, boot_ms = self._now_ms(), self._clock.boot_ms()
        points = [*self._points, self._point()][-count - 2 :]
        pairs = list(pairwise(points))
        return {
            # by the boot clock: a wall clock that is set does not fold the axis
            "at": [(now_ms - boot_ms + point.boot_ms) // 1000 for _, point in pairs],
            "accepted": [max(0, point.accepted - before.accepted) for before, point in pairs],
            "delivered": [max(0, point.delivered - before.delivered) for before, point in pairs],
            "pending": [point.pending for _, point in pairs],
        }

    def today(self) -> dict[str, Any]:
        """``{"day", "accepted", "delivered"}`` since midnight, where this machine is."""
        ledger = self._source.ledger()
        start = self._start or Start(self._day(), 0, 0)
        return {
            "day": start.day,
            "accepted": max(0, ledger["accepted"] - start.accepted),
            "delivered": max(0, ledger["delivered"] - start.delivered),
        }

    def errors(self) -> list[dict[str, Any]]:
        """``[{"error", "lanes", "what", "do", "since", "until"}]``, the latest first; `until` None while it lasts."""
        told = []
        for error in reversed(self._errors):
            what, do = advice(error.error)
            until = None if error.until_ms is None else format_ms(error.until_ms)
            times = {"since": format_ms(error.since_ms), "until": until}
            told.append({"error": error.error, "lanes": sorted(error.lanes), "what": what, "do": do, **times})
        return told

    def _note(self, errors: Mapping[str, str | None]) -> None:
        now_ms = self._now_ms()
        current: dict[str, set[str]] = {}
        for lane, error in errors.items():
            if error is not None and not is_refusal(error):
                current.setdefault(error, set()).add(lane)
        for known in self._errors:
            if (lanes := current.get(known.error)) is None:
                known.until_ms = known.until_ms or now_ms
            elif known.until_ms is None or now_ms - known.until_ms < _SAME_MS:
                known.until_ms = None
                known.lanes |= lanes
                del current[known.error]
        self._errors.extend(Happened(error, lanes, now_ms) for error, lanes in current.items())

    async def _begin_day(self) -> None:
        """Remember the ledger at the first look of a new day."""
        day = self._day()
        if self._start is not None and (
            # a clock that nobody has confirmed may have fallen back: the day does not begin again for it
            day <= self._start.day if not self._is_sure() else day == self._start.day
        ):
            return
        ledger = self._source.ledger()
        self._start = Start(day, ledger["accepted"], ledger["delivered"])
        row = (_NAME, msgspec.json.encode(self._start).decode())
        try:
            await self._source.run(
                lambda work: work.conn.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", row).rowcount
            )
        except Unknown:
            log.warning("today not stored")  # a restart today counts anew

    def _day(self) -> str:
        return datetime.fromtimestamp(min(max(self._now_ms(), 0), _LAST_DAY_MS) / 1000).astimezone().date().isoformat()

    def _point(self) -> Point:
        ledger = self._source.ledger()
        return Point(self._clock.boot_ms(), ledger["accepted"], ledger["delivered"], ledger["pending"])
