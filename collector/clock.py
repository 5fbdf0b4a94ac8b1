"""The upstream's clock, and what it says about the times we stamped (G9).

A measured offset is an interval, not a number: the server's time was read somewhere between
our asking and our hearing, and is cut to whole seconds. Intervals of several measurements
intersect. What a measurement corrects is committed (see `corrections`) before anything is sent.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import msgspec

from collector.batcher import Gate
from collector.buffer import Unknown
from collector.config import ClockConfig, DeliveryConfig
from collector.corrections import (
    RELEASED_MS,
    Boot,
    Corrections,
    History,
    Row,
    Stance,
    add_row,
    estimates,
    forget_boots,
    load_corrections,
    load_history,
    put_stance,
    save_history,
)
from collector.crashpoints import reach
from collector.credentials import Exchange
from collector.logs import logger
from collector.outcomes import Answer, Later, Paused
from collector.retry import delay_s, parse_http_date_ms
from collector.waiting import Embargo, Shared, Timer
from collector.work import Work
from tracker.time import Clock, parse_ms
from tracker.wire import ClockHeader

log = logger("clock")
T = TypeVar("T")

SERVER_TIME_PATH: Final = "/v4/server/time"
MEASURE_EVERY_S: Final = 600.0
_STEP_MS: Final = 1_000
"""A change of wall minus boot time by this much means that somebody set the clock."""
_DRIFT: Final = 0.0002
"""How much faster or slower than the upstream's our boot clock may run, with room to spare."""
_NEWS_MS: Final = 500
"""How differently another machine's boot clock must stand to ours before we note it anew."""
_BOOTS_MAX: Final = 10_000
"""Other machines' boots, and boots nobody measured, that are remembered."""
_BOOTS_MANY: Final = 1_000
"""More than these are forgotten at a start with an empty buffer."""
_ROWS_MAX: Final = 1_000
"""Of one boot: an upstream whose clock jumps about must not fill the buffer."""


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
        """How far off it was when last measured: at most the resolution plus half the round trip."""
        return round((self._high - self._low) / 2)

    @property
    def drift_ms(self) -> int:
        """How far it may have gone off since."""
        return 0 if self._at_boot_ms is None else round((self._clock.boot_ms() - self._at_boot_ms) * _DRIFT)

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
        self._heard: dict[str, ClockHeader] = {}
        """The latest of each boot of another machine."""
        self._hearing = asyncio.Lock()
        self._gated_ms = 0
        """Time since boot when records may have left last."""
        self._measured = False
        self._wall_since_boot_ms = self._wall_minus_boot()
        self._embargo = Embargo(clock, self._patience.retry_after_max)
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
        self._gated_ms = self._clock.boot_ms()
        return Gate(
            now_ms=self.upstream.now_ms(),
            margin_ms=self._margin_ms(),
            hold_max_ms=round(self._config.hold_max * 1000),
            corrections=self.corrections,
        )

    def horizon_ms(self) -> int:
        """A record of a later time may not be sent now; goes back when the upstream's clock was set back."""
        return self.upstream.now_ms() - self._margin_ms()

    def _margin_ms(self) -> int:
        # a clock known less well than the margin needs a wider one
        return max(round(self._config.margin * 1000), self.upstream.uncertainty_ms + self.upstream.drift_ms)

    async def start(self) -> None:
        """Read what is on disk, and note that a boot began if one did."""

        own = self._clock.boot_id()
        self._gated_ms = self._clock.boot_ms()  # when an earlier process of this boot let go is not known

        def unit(work: Work) -> tuple[History, Corrections]:
            forget_boots(work.conn, own, _BOOTS_MANY)
            history, corrections = load_history(work.conn), load_corrections(work.conn)
            last = history.current
            # a buffer that moves between machines may see one of their boots again
            ended = tuple(boot for boot in history.ended if boot.boot != own)
            if last is not None and last.boot != own and last.boot not in corrections.rows:
                ended = (*ended, last)[-_BOOTS_MAX:]
            history = msgspec.structs.replace(history, current=self._this_boot(), ended=ended)
            save_history(work.conn, history)
            return history, corrections

        self._history, self.corrections = await self._store.run(unit)

    async def saw(self, header: ClockHeader) -> None:
        """Note how the sender's boot clock stands to ours; call it before its records are stored."""
        boot, own, here_ms = header.boot, self._clock.boot_id(), self._clock.boot_ms()
        if boot == own:
            return
        async with self._hearing:  # nobody's records are stored while it changes what governs them
            heard = self._heard.get(boot)
            if _stance(header, heard, own, here_ms, self.corrections) is not None:

                def unit(work: Work) -> Corrections:
                    if len(self.corrections.boots) >= _BOOTS_MAX:
                        forget_boots(work.conn, own, _BOOTS_MAX)
                    corrections = load_corrections(work.conn)
                    stance = _stance(header, heard, own, here_ms, corrections)
                    if stance is not None and (boot in corrections.boots or len(corrections.boots) < _BOOTS_MAX):
                        put_stance(work.conn, boot, stance)
                        corrections = load_corrections(work.conn)
                    return corrections

                self.corrections = await self._store.run(unit)
            if boot in self.corrections.boots and (heard is None or header.now_ms > heard.now_ms):
                self._heard[boot] = header

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
        """Measure now and then until `stop` is set, first after the start-up jitter."""
        failures = 0
        if self._patience.startup_jitter:  # a whole shop gets its power back in the same second
            await self._timer.wait(stop, self._chance() * self._patience.startup_jitter)
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
        if (told := self._embargo.told()) is not None:
            return told
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
            later = Later(f"{status} instead of the upstream's time", answer.retry_after_s, status=status)
            self._embargo.note(later)
            return later
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
            before = self._history.current or self._this_boot()
            guessed = estimates(history.ended, self._history.good_ms, row.offset_ms, row.offset_ms - before.offset_ms)
            history = msgspec.structs.replace(history, ended=(), estimated=history.estimated + len(guessed))

        def unit(work: Work) -> Corrections:
            if row is not None:
                add_row(work.conn, self._clock.boot_id(), row)
                reach("correcting")
            for boot, offset_ms in guessed:
                add_row(work.conn, boot.boot, Row(0, offset_ms, self._tolerance_ms))
            save_history(work.conn, history)
            return load_corrections(work.conn)

        self.corrections = await self._store.run(unit)
        self._history = history
        if row is not None:
            reach("corrected")
            wrong_ms = row.offset_ms - self._wall_minus_boot()
            log.info("clock.row", own_clock_behind_ms=wrong_ms, synchronised=since_boot_ms is not None)
        for boot, offset_ms in guessed:
            log.warning("clock.estimated", boot=boot.boot, own_clock_behind_ms=offset_ms - boot.offset_ms)

    def _row_to_add(self) -> Row | None:
        """The row that stamps of this boot need and do not have yet."""
        wall_minus_boot = self._wall_minus_boot()
        true = self.upstream.since_boot_ms
        close = max(self._tolerance_ms, self.upstream.uncertainty_ms)
        # our own clock is as good as what we know: leave its stamps alone
        wanted = wall_minus_boot if true is None or abs(true - wall_minus_boot) <= close else true
        rows = self.corrections.rows.get(self._clock.boot_id())
        if not rows:
            return Row(0, wanted, self._tolerance_ms)
        last = rows[-1]
        # while the latest row lies ahead it governs nothing that could be repaired by another
        if abs(wanted - last.offset_ms) <= close or last.from_boot_ms > self._clock.boot_ms() or len(rows) >= _ROWS_MAX:
            return None
        # later than every stamp that may have been sent: none left whose time, as we saw it, was not over
        start = max(self._gated_ms + close + max(close, last.tolerance_ms), last.from_boot_ms) + 1
        return Row(start, wanted, self._tolerance_ms)

    def _wall_minus_boot(self) -> int:
        return self._clock.wall_ms() - self._clock.boot_ms()

    def _this_boot(self) -> Boot:
        return Boot(self._clock.boot_id(), self._wall_minus_boot(), self._clock.boot_ms())


def _stance(
    header: ClockHeader, heard: ClockHeader | None, own: str, here_ms: int, known: Corrections
) -> Stance | None:
    """How the sender's boot clock stands to ours, if that is news.

    `heard` is the latest header from there so far, `here_ms` our time since boot now.
    """
    ahead_ms = header.now_ms - here_ms
    stances = known.boots.get(header.boot)
    if not stances:
        # an earlier boot of our own needs none
        return None if header.boot in known.rows else Stance(header.now_ms, own, ahead_ms)
    last = stances[-1]
    if last.own_boot == own:
        # a request under way for long makes it look less; what really slows it is drift, or that it stood still,
        # asleep, while wall time went on
        drift_ms = round(max(header.now_ms - last.from_boot_ms, 0) * _DRIFT)
        slept_ms = 0 if heard is None else max(header.offset_ms - heard.offset_ms, 0)
        ahead_ms = max(ahead_ms, last.ahead_ms - drift_ms - slept_ms)
        if abs(ahead_ms - last.ahead_ms) <= _NEWS_MS:
            return None
    if last.own_boot not in known.rows:
        # nothing was sent under a boot whose time was never known: what we know better now holds from the beginning
        return Stance(last.from_boot_ms, own, ahead_ms)
    # only for stamps later than all that were ever stored
    start = (heard or header).now_ms + 1
    return Stance(start, own, ahead_ms) if start > last.from_boot_ms and len(stances) < _ROWS_MAX else None
