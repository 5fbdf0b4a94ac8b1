"""The upstream's clock, and what it says about the times we stamped (G9).

Three facts carry everything here:

- While a machine runs, wall time minus time since boot is constant unless somebody sets
  the clock. So the true time of a stamp follows from when, since boot, it was made.
- A correction is a row on disk (boot, from boot time, offset), committed before any record
  it governs is sent. Rows never change, and a new one starts later than every stamp that
  may have been sent: the corrected time is a pure function of the disk, and a resend after
  a crash is byte-identical.
- A measured offset is an interval, not a number: the server's time was read somewhere
  between our asking and our hearing, and is cut to whole seconds. Intervals of several
  measurements intersect.
"""

import asyncio
import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import msgspec

from collector.batcher import Gate
from collector.buffer import Unknown
from collector.config import ClockConfig, DeliveryConfig
from collector.credentials import Exchange
from collector.logs import logger
from collector.outcomes import Answer, Later, Paused
from collector.retry import delay_s, parse_http_date_ms
from collector.waiting import Shared, Timer
from collector.work import Work
from tracker.time import Clock, parse_ms
from tracker.wire import ClockHeader

log = logger("clock")
T = TypeVar("T")

SERVER_TIME_PATH: Final = "/v4/server/time"
RELEASED_MS: Final = parse_ms("2026-11-01T00:00:00Z")
"""When this version was released: a clock that shows an earlier time is certainly wrong."""
MEASURE_EVERY_S: Final = 600.0
_STEP_MS: Final = 1_000
"""A change of wall minus boot time by this much means that somebody set the clock."""
_DRIFT: Final = 0.0002
"""How much faster or slower than the upstream's our boot clock may run, with room to spare."""
_LATEST_MS: Final = 253_402_300_799_999  # the end of year 9999
_BOOTS_MAX: Final = 10_000


# -- the upstream's clock now -------------------------------------------------------------------


class UpstreamClock:
    """What the upstream's clock shows, as far as we know."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._low = self._high = 0.0
        self._at_boot_ms: int | None = None

    def observe(self, server_ms: int, resolution_ms: int, sent_boot_ms: int, received_boot_ms: int) -> None:
        """The upstream said it was `server_ms`, cut to `resolution_ms`, between these two times since our boot."""
        low, high = float(server_ms - received_boot_ms), float(server_ms + resolution_ms - sent_boot_ms)
        if self._at_boot_ms is not None:
            drift = abs(received_boot_ms - self._at_boot_ms) * _DRIFT
            both = max(low, self._low - drift), min(high, self._high + drift)
            if both[0] <= both[1]:  # else a clock was set, and only the latest counts
                low, high = both
        self._low, self._high, self._at_boot_ms = low, high, received_boot_ms

    @property
    def synchronised(self) -> bool:
        return self._at_boot_ms is not None

    @property
    def since_boot_ms(self) -> int | None:
        """The upstream's clock minus our time since boot; None while unknown."""
        return round((self._low + self._high) / 2) if self.synchronised else None

    @property
    def uncertainty_ms(self) -> int:
        """How far off it may be: at most the resolution plus half the round trip."""
        return round((self._high - self._low) / 2)

    @property
    def offset_ms(self) -> int | None:
        """The upstream's clock minus our wall clock; None while unknown."""
        now = self.known_ms()
        return None if now is None else now - self._clock.wall_ms()

    def known_ms(self) -> int | None:
        """What the upstream's clock shows; None while unknown."""
        return None if (since := self.since_boot_ms) is None else since + self._clock.boot_ms()

    def now_ms(self) -> int:
        """What the upstream's clock shows; our own clock while that is unknown."""
        known = self.known_ms()
        return self._clock.wall_ms() if known is None else known


# -- what was wrong with ours -------------------------------------------------------------------


@dataclass(frozen=True)
class Corrections:
    """The true time of each boot. Immutable: what is on disk at one moment."""

    tolerance_ms: int = 0
    """Smaller errors are left as they are."""
    rows: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    """Per boot of ours, in order: from which time since boot, and true time minus time since boot."""
    boots: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Per boot of another machine: ours at the time, and how far its boot clock runs ahead of that."""

    def corrected_ms(self, boot: str, offset_ms: int, stamped_ms: int) -> int:
        """The time a stamp made at `stamped_ms`, with wall minus boot clock at `offset_ms`, should have had."""
        own, ahead_ms = self.boots.get(boot, (boot, 0))
        rows = self.rows.get(own)
        if not rows:
            return stamped_ms
        at_boot_ms = stamped_ms - offset_ms - ahead_ms
        _, since_boot_ms = rows[max(bisect_right(rows, at_boot_ms, key=lambda row: row[0]) - 1, 0)]
        true_ms = at_boot_ms + since_boot_ms
        if abs(true_ms - stamped_ms) <= self.tolerance_ms or not 0 <= true_ms <= _LATEST_MS:
            return stamped_ms
        return true_ms


class Boot(msgspec.Struct, frozen=True):
    """One run of this machine, as it is remembered for later."""

    boot: str
    offset_ms: int
    """Wall minus boot clock, as last seen."""
    alive_ms: int
    """Time since boot, as last seen."""


class History(msgspec.Struct, frozen=True):
    """What is remembered to estimate boots that ended before the true time was known."""

    current: Boot | None = None
    ended: tuple[Boot, ...] = ()
    """Boots without a row, oldest first."""
    good_ms: int | None = None
    """The latest true time ever known."""
    estimated: int = 0
    """Boots whose true time could only be estimated."""


def load_corrections(conn: sqlite3.Connection, tolerance_ms: int) -> Corrections:
    """Everything that is known of true times."""
    rows: dict[str, list[tuple[int, int]]] = {}
    for boot, start, offset in conn.execute(
        "SELECT boot, from_boot_ms, offset_ms FROM clock ORDER BY boot, from_boot_ms"
    ):
        rows.setdefault(boot, []).append((start, offset))
    boots = {boot: (own, ahead) for boot, own, ahead in conn.execute("SELECT boot, own_boot, ahead_ms FROM boots")}
    return Corrections(tolerance_ms, {boot: tuple(each) for boot, each in rows.items()}, boots)


def add_row(conn: sqlite3.Connection, boot: str, from_boot_ms: int, offset_ms: int) -> None:
    """From this time since boot on, true time is time since boot plus `offset_ms`."""
    conn.execute("INSERT INTO clock (boot, from_boot_ms, offset_ms) VALUES (?, ?, ?)", (boot, from_boot_ms, offset_ms))


def add_boot(conn: sqlite3.Connection, boot: str, own_boot: str, ahead_ms: int) -> None:
    """Remember how another machine's boot clock stands to ours; the first time it is seen decides."""
    conn.execute("INSERT OR IGNORE INTO boots (boot, own_boot, ahead_ms) VALUES (?, ?, ?)", (boot, own_boot, ahead_ms))


def load_history(conn: sqlite3.Connection) -> History:
    row = conn.execute("SELECT value FROM meta WHERE name = 'clock_history'").fetchone()
    return msgspec.json.decode(row[0], type=History) if row else History()


def save_history(conn: sqlite3.Connection, history: History) -> None:
    encoded = msgspec.json.encode(history).decode()
    conn.execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('clock_history', ?)", (encoded,))


def estimates(ended: tuple[Boot, ...], good_ms: int | None, next_started_ms: int) -> list[tuple[Boot, int]]:
    """True time minus time since boot for boots nobody measured, oldest first.

    Each lies between the last time known to be true and the start of the next boot. Its own
    clock is believed where that fits; otherwise the middle is taken, or, where nothing was
    ever known, the latest possible.
    """
    found: list[tuple[Boot, int]] = []
    for boot in reversed(ended):
        latest = next_started_ms - boot.alive_ms
        earliest = min(good_ms, latest) if good_ms is not None else None
        if max(earliest or 0, RELEASED_MS - boot.alive_ms) <= boot.offset_ms <= latest:
            since_boot_ms = boot.offset_ms
        else:
            since_boot_ms = latest if earliest is None else (earliest + latest) // 2
        found.append((boot, since_boot_ms))
        next_started_ms = since_boot_ms
    return found[::-1]


# -- keeping both in order ----------------------------------------------------------------------


class Store(Protocol):
    """The part of the buffer the keeper needs."""

    async def run(self, unit: Callable[[Work], T], /) -> T: ...


class Keeper:
    """Measures the upstream's clock and keeps the corrections on disk.

    `start` before anything is accepted; `ready` before anything is taken; `run` beside.
    """

    def __init__(
        self,
        exchange: Exchange,
        store: Store,
        clock: Clock,
        config: ClockConfig,
        *,
        delivery: DeliveryConfig | None = None,
        timer: Timer,
        chance: Callable[[], float],
    ) -> None:
        self.upstream = UpstreamClock(clock)
        self.corrections = Corrections()
        self._exchange = exchange
        self._store = store
        self._clock = clock
        self._config = config
        self._patience = delivery or DeliveryConfig()
        self._timer = timer
        self._chance = chance
        self._tolerance_ms = round(config.tolerance * 1000)
        self._history = History()
        self._measured = False
        self._wall_since_boot_ms = self._wall_minus_boot()
        self._by_date = False
        """Whether the upstream's answers tell the time in their headers only."""
        self._put_in_order: Shared[Later | Paused | None] = Shared(self._measure_and_commit, "tillpost-clock")

    @property
    def estimated(self) -> int:
        """Boots whose true time could only be estimated."""
        return self._history.estimated

    def status(self) -> dict[str, Any]:
        """The ``clock`` of ``status.json``."""
        return {"offset_ms": self.upstream.offset_ms, "synchronised": self.upstream.synchronised}

    def gate(self) -> Gate:
        """Which records may leave now."""
        return Gate(
            now_ms=self.upstream.now_ms(),
            # a clock known less well than the margin needs a wider one
            margin_ms=max(round(self._config.margin * 1000), self.upstream.uncertainty_ms),
            hold_max_ms=round(self._config.hold_max * 1000),
            corrections=self.corrections,
        )

    async def start(self) -> None:
        """Read what is on disk, and note that a boot began if one did."""

        def unit(work: Work) -> tuple[History, Corrections]:
            history, corrections = load_history(work.conn), load_corrections(work.conn, self._tolerance_ms)
            last = history.current
            ended = history.ended
            if last is not None and last.boot != self._clock.boot_id() and last.boot not in corrections.rows:
                ended = (*ended, last)[-_BOOTS_MAX:]
            history = msgspec.structs.replace(history, current=self._this_boot(), ended=ended)
            save_history(work.conn, history)
            return history, corrections

        self._history, self.corrections = await self._store.run(unit)

    async def saw(self, header: ClockHeader) -> None:
        """Note how the sender's boot clock stands to ours; call it before its records are stored."""
        boot, own = header.boot, self._clock.boot_id()
        known = self.corrections.boots
        if boot == own or boot in known or boot in self.corrections.rows or len(known) >= _BOOTS_MAX:
            return
        ahead_ms = header.now_ms - self._clock.boot_ms()
        await self._store.run(lambda work: add_boot(work.conn, boot, own, ahead_ms))
        self.corrections = await self._store.run(lambda work: load_corrections(work.conn, self._tolerance_ms))

    def on_answer(self, answer: Answer) -> None:
        """Let an answer to any request tell the time, where the upstream has no better way."""
        if self._by_date:
            self._observe_date(answer)

    async def ready(self) -> Later | Paused | None:
        """Return None when records may be taken: the time is known and what it corrects is on disk.

        Later or Paused: why not. Raises Unknown when the buffer could not be written.
        """
        stepped = abs(self._wall_minus_boot() - self._wall_since_boot_ms) >= _STEP_MS
        if self._measured and not stepped and self._row_to_add() is None:
            return None
        return await self._put_in_order()

    async def run(self, stop: asyncio.Event) -> None:
        """Measure now and then until `stop` is set."""
        failures = 0
        while not stop.is_set():
            try:
                failed = await self._put_in_order() is not None
            except Unknown as error:
                log.error("clock.not_stored", error=str(error))
                failed = True
            failures = failures + 1 if failed else 0
            pause = MEASURE_EVERY_S
            if failed:
                pause = delay_s(
                    failures,
                    base_s=self._patience.backoff_base,
                    max_s=self._patience.backoff_max,
                    chance=self._chance,
                )
            await self._timer.wait(stop, max(pause, 1.0))

    async def close(self) -> None:
        """End a measurement under way."""
        await self._put_in_order.close()

    # -- measuring

    async def _measure_and_commit(self) -> Later | Paused | None:
        verdict = await self._measure()
        if self.upstream.synchronised:
            # known once is known for good: the boot clock carries it on
            verdict = None
        if verdict is None:
            self._measured = True
            self._wall_since_boot_ms = self._wall_minus_boot()
        await self._commit()
        return verdict

    async def _measure(self) -> Later | Paused | None:
        answer = await self._exchange.request("GET", SERVER_TIME_PATH, headers={"Cache-Control": "no-cache"})
        if not isinstance(answer, Answer):
            return answer
        if self._observe_server_time(answer):
            self._by_date = False
            return None
        self._by_date = True
        if self._observe_date(answer):
            return None
        status = answer.status
        if 300 <= status < 400 or (answer.html and status < 300):
            return Later(f"{status} instead of the upstream's time: a captive portal?", status=status)
        if status in (408, 425, 429) or (status >= 500 and status != 501):
            return Later(f"{status} instead of the upstream's time", status=status)
        if self.upstream.synchronised:
            return None
        if self._clock.wall_ms() < RELEASED_MS:
            return Paused("this machine's clock is wrong and the upstream tells no time: set the clock")
        if not self._measured:
            log.warning("clock.own_clock_used", status=status)
        return None

    def _observe_server_time(self, answer: Answer) -> bool:
        body = answer.json() if answer.status == 200 and answer.genuine else None
        text = body.get("serverTime") if isinstance(body, dict) else None
        if not isinstance(text, str):
            return False
        try:
            server_ms = parse_ms(text)
        except ValueError:
            return False
        # whole seconds in the API's sample; ".000" may be a server that cuts and then pads
        resolution_ms = 1 if server_ms % 1000 else 1000
        self.upstream.observe(server_ms, resolution_ms, answer.sent_boot_ms, answer.received_boot_ms)
        return True

    def _observe_date(self, answer: Answer) -> bool:
        server_ms = parse_http_date_ms(answer.headers.get("Date"))
        if server_ms is None or not answer.genuine or "Age" in answer.headers:  # Age: it comes from a cache
            return False
        self.upstream.observe(server_ms, 1000, answer.sent_boot_ms, answer.received_boot_ms)
        return True

    # -- committing

    async def _commit(self) -> None:
        """Put on disk what is known now: that this boot lives, and its row if it needs one."""
        since_boot_ms = self.upstream.since_boot_ms
        row = self._row_to_add() if self._measured else None
        history = msgspec.structs.replace(self._history, current=self._this_boot())
        if since_boot_ms is not None:
            history = msgspec.structs.replace(history, good_ms=since_boot_ms + self._clock.boot_ms())
        guessed: list[tuple[Boot, int]] = []
        if row is not None and history.ended:
            guessed = estimates(history.ended, self._history.good_ms, row[1])
            history = msgspec.structs.replace(history, ended=(), estimated=history.estimated + len(guessed))

        def unit(work: Work) -> Corrections:
            if row is not None:
                add_row(work.conn, self._clock.boot_id(), *row)
            for boot, offset_ms in guessed:
                add_row(work.conn, boot.boot, 0, offset_ms)
            save_history(work.conn, history)
            return load_corrections(work.conn, self._tolerance_ms)

        self.corrections = await self._store.run(unit)
        self._history = history
        if row is not None:
            wrong_ms = row[1] - self._wall_minus_boot()
            log.info("clock.row", own_clock_behind_ms=wrong_ms, synchronised=since_boot_ms is not None)
        for boot, offset_ms in guessed:
            log.warning("clock.estimated", boot=boot.boot, own_clock_behind_ms=offset_ms - boot.offset_ms)

    def _row_to_add(self) -> tuple[int, int] | None:
        """(from boot time, offset) that stamps of this boot need and do not have yet."""
        wall_minus_boot = self._wall_minus_boot()
        true = self.upstream.since_boot_ms
        close = max(self._tolerance_ms, self.upstream.uncertainty_ms)
        # our own clock is as good as what we know: leave its stamps alone
        wanted = wall_minus_boot if true is None or abs(true - wall_minus_boot) <= close else true
        rows = self.corrections.rows.get(self._clock.boot_id())
        if not rows:
            return 0, wanted
        if abs(wanted - rows[-1][1]) <= close:
            return None
        # later than every stamp that may have been sent: none leaves whose time, as we saw it, was not over
        start = max(self._clock.boot_ms() + 2 * close, rows[-1][0]) + 1
        # while the latest row lies ahead it governs nothing that could be repaired by another
        return None if rows[-1][0] > self._clock.boot_ms() else (start, wanted)

    def _wall_minus_boot(self) -> int:
        return self._clock.wall_ms() - self._clock.boot_ms()

    def _this_boot(self) -> Boot:
        return Boot(self._clock.boot_id(), self._wall_minus_boot(), self._clock.boot_ms())
