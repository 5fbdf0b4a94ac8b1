"""A fleet of tills comes back at the same moment: how many requests a second does the upstream get?

    python benchmarks/fleet.py [--tills 1000] [--plot fleet.svg]

Everything but sockets and disks is the real code: lanes, batching, retries, log-ins, the clock.
Time is virtual. Three ways to come back, each with jitter and, as the control, without:

- ``outage``: for an hour nobody can be reached;
- ``maintenance``: for an hour the upstream answers 503, and Retry-After says when it ends;
- ``power``: the network fails, then the power; an hour later all have both back in the same second.

Wanted: at most three times the steady rate, never a request before its Retry-After. The control
must break that wherever something wakes all tills at once (maintenance, power), or the simulation
could not see a herd if there was one. Exit 1 when it is otherwise.
"""

import argparse
import asyncio
import contextlib
import logging
import random
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import orjson

from collector import schema
from collector.batcher import Delivered, Fate, Gate, Limits, Wait, assemble
from collector.chunks import Batch, Chunk, ends_of
from collector.clock import Keeper
from collector.config import Config, DeliveryConfig
from collector.credentials import make_credentials
from collector.delivery import HttpUpstream
from collector.kinds import KINDS, Lane, Run
from collector.lanes import Lanes
from collector.outcomes import Answer, Later
from collector.waiting import SystemTimer
from collector.work import SEQ_BITS, LaneState, Work
from tracker.time import format_ms

T = TypeVar("T")
Story = Literal["outage", "maintenance", "power"]
STORIES: Final[tuple[Story, ...]] = ("outage", "maintenance", "power")
EVENTS, SALES = Lane("events", "customId", "live"), Lane("transactions", "customId", "live")
SALE_EVERY_S: Final = 60.0
"""Of one till, on average; each sale is an event and a transaction."""
LATENCY_S: Final = 0.08
BIN_S: Final = 10
"""Rates are those of so many seconds: what a load balancer sees, and more than chance for a small fleet."""
JITTER_AT_START_S: Final = 300.0
"""What ``delivery.startup_jitter`` should be for a fleet of this size."""
T0: Final = 1_798_000_000_000


# -- time that jumps to the next moment anybody waits for ----------------------------------------


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock moves only when everybody waits. No input and no output."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._selector.select = self._jump  # type: ignore[attr-defined]

    def _jump(self, timeout: float | None) -> list[Any]:
        assert timeout is not None, "everybody waits for something that never comes"
        self.now += max(timeout, 0.0)
        return []

    def time(self) -> float:
        return self.now


class LoopClock:
    """A till's clocks, right from the start; each time the power returns is another boot."""

    def __init__(self, boot: str) -> None:
        self._boot = boot
        self._loop = asyncio.get_running_loop()

    def wall_ms(self) -> int:
        return T0 + self.boot_ms()

    def boot_ms(self) -> int:
        return round(self._loop.time() * 1000)

    def boot_id(self) -> str:
        return self._boot


# -- the upstream -------------------------------------------------------------------------------


class Service:
    """The API as the whole fleet sees it. Counts requests and those that came too early."""

    def __init__(self) -> None:
        self.state: Literal["up", "away", "maintenance"] = "up"
        self.back_s = 0.0
        """When the maintenance ends."""
        self.requests: Counter[int] = Counter()
        """By bin."""
        self.stored: Counter[bytes] = Counter()
        self.early = 0
        """Requests before the time that their till was told for the same thing."""
        self.tokens = 0
        self._not_before: dict[tuple[int, str], float] = {}
        self._expires: dict[str, float] = {}

    async def request(self, till: int, path: str, headers: Mapping[str, str], body: bytes) -> Answer | Later:
        loop = asyncio.get_running_loop()
        if self.state == "away":
            return Later("the upstream cannot be reached", offline=True)
        self.requests[int(loop.time() // BIN_S)] += 1
        # a millisecond: boot clocks count in whole ones
        self.early += loop.time() < self._not_before.pop((till, path), 0.0) - 0.001
        sent = round(loop.time() * 1000)
        await asyncio.sleep(LATENCY_S)
        status, answer = self._answer(path, headers, body)
        told: dict[str, str] = {}
        if status == 503:
            left_s = max(round(self.back_s - loop.time()), 1)
            told = {"Retry-After": str(left_s)} if till % 2 else {
                "Retry-After": _date(loop.time() + left_s), "Date": _date(loop.time())
            }  # fmt: skip
            self._not_before[till, path] = loop.time() + left_s
        return Answer(status, told, answer, True, sent, round(loop.time() * 1000))

    def _answer(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        now = asyncio.get_running_loop().time()
        if self.state == "maintenance":
            return 503, b""
        if path.endswith("/server/time"):
            return 200, orjson.dumps({"serverTime": format_ms(T0 + int(now) * 1000)})
        if "/auth/" in path:
            self.tokens += 1
            token = f"token-{self.tokens}"
            self._expires[token] = now + 3600
            return 200, orjson.dumps({"token": token})
        if self._expires.get(headers["Authorization"].removeprefix("Bearer "), 0.0) < now:
            return 401, b'{"error":"Token expired."}'
        self.stored.update(each["eventSalt"].encode() for each in orjson.loads(body))
        return 202, b""


def _date(seconds: float) -> str:
    # rounded to whole seconds alike, so that the difference is what was meant
    return format_datetime(datetime.fromtimestamp(T0 / 1000 + int(seconds), UTC), usegmt=True)


# -- a till -------------------------------------------------------------------------------------


class Disk:
    """What a till's buffer is to delivery, in memory: records in order, taken by the real batcher."""

    def __init__(self, image: bytes) -> None:
        self.erasures = 0
        self._waiting: dict[Lane, list[bytes]] = {EVENTS: [], SALES: []}
        self._states = {lane: LaneState(lane, i) for i, lane in enumerate(self._waiting, 1)}
        self._listeners: list[Callable[[Lane], None]] = []
        self._meta = sqlite3.connect(":memory:", isolation_level=None)
        self._meta.deserialize(image)

    def append(self, lane: Lane, record: bytes) -> None:
        state = self._states[lane]
        self._waiting[lane].append(record)
        state.last_seq, state.pending, state.bytes = state.last_seq + 1, state.pending + 1, state.bytes + len(record)
        for listener in self._listeners:
            listener(lane)

    def lane(self, lane: Lane) -> LaneState:
        return self._states[lane]

    def lanes(self) -> list[LaneState]:
        return [*self._states.values()]

    def on_records(self, listener: Callable[[Lane], None]) -> None:
        self._listeners = [listener]

    def head(self, lane: Lane) -> int | None:
        state, waiting = self._states[lane], len(self._waiting[lane])
        return state.id << SEQ_BITS | state.last_seq - waiting + 1 if waiting else None

    async def take(self, lane: Lane, limits: Limits, gate: Gate) -> Batch | Wait | None:
        if not (records := self._waiting[lane][: limits.max_records]):
            return None
        latest = max(map(KINDS[lane.kind].time_ms, records))
        runs = (Run(len(records), latest, None, 0),)
        chunk = Chunk(self.head(lane) or 0, lane, b",".join(records), ends_of(records), runs, 0)
        done = assemble(lane, [chunk], limits, gate)
        return done.batch or Wait(done.wait_until_ms)

    async def settle(self, fates: Sequence[tuple[Batch, Fate]]) -> None:
        for part, fate in fates:
            assert isinstance(fate, Delivered), fate
            gone = {part.record(i) for i in range(part.count)}
            kept = [record for record in self._waiting[part.lane] if record not in gone]
            state, self._waiting[part.lane] = self._states[part.lane], kept
            state.pending, state.bytes = len(kept), sum(map(len, kept))

    def release(self, batch: Batch) -> None:
        """Nothing is in hand here."""

    async def run(self, unit: Callable[[Work], T]) -> T:
        return unit(Work(self._meta, {}, 0))


class Till:
    """One till: sells, loses its power, gets it back."""

    def __init__(self, number: int, service: Service, config: Config, image: bytes, jitter: bool) -> None:
        self.number = number
        self.disk = Disk(image)
        self.sold = 0
        self._service = service
        self._config = config
        self._dice = random.Random(number)
        self._chance = self._dice.random if jitter else lambda: 1.0
        self._boots = 0
        self._tasks: list[asyncio.Task[Any]] = []

    async def request(
        self,
        method: str,  # noqa: ARG002  the path says enough
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer | Later:
        return await self._service.request(self.number, path, headers or {}, body or b"")

    async def power_on(self) -> None:
        self._boots += 1
        clock, timer, config = LoopClock(f"{self.number}-{self._boots}"), SystemTimer(), self._config
        keeper = Keeper(
            self, self.disk, clock, config.clock, delivery=config.delivery, timer=timer, chance=self._chance
        )
        credentials = make_credentials(config.upstream, lambda: "key", self, clock, keeper.upstream.now_ms)
        upstream = HttpUpstream(self, credentials)  # type: ignore[arg-type]
        self.lanes = Lanes(self.disk, upstream, keeper, config, clock=clock, timer=timer, chance=self._chance)
        await keeper.start()
        self._begin(keeper.run(asyncio.Event()))
        await self.lanes.start()
        self._begin(self._sell(clock))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def power_off(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self.lanes.stop(0)

    async def _sell(self, clock: LoopClock) -> None:
        while True:
            await asyncio.sleep(self._dice.expovariate(1 / SALE_EVERY_S))
            time = format_ms(clock.wall_ms())
            for lane, more in (
                (EVENTS, {"type": "shared", "time": time}),
                (SALES, {"orderId": "1", "recordedAt": time}),
            ):
                self.sold += 1
                record = {"eventSalt": f"{self.number}-{self.sold}", "client": {"customId": "C"}, **more}
                self.disk.append(lane, orjson.dumps(record))


# -- what happens -------------------------------------------------------------------------------


class Result:
    """What the upstream saw of one story."""

    def __init__(self, story: Story, jitter: bool, service: Service, times: tuple[float, float, float]) -> None:
        self.story, self.jitter, self.early = story, jitter, service.early
        self.begin_s, self.back_s, self.end_s = times
        bins = range(int(self.end_s // BIN_S))
        self.rates = [service.requests[i] / BIN_S for i in bins]
        before = [self.rates[i] for i in bins if self.begin_s / 2 <= i * BIN_S < self.begin_s - BIN_S]
        self.steady = sum(before) / len(before)
        self.peak = max(self.rates[i] for i in bins if i * BIN_S >= self.back_s - BIN_S)

    @property
    def ratio(self) -> float:
        """The highest rate since things are good again, in steady rates."""
        return self.peak / self.steady

    def __str__(self) -> str:
        return (
            f"{self.story:12} {'with' if self.jitter else 'without':7} jitter: steady {self.steady:6.1f}/s, "
            f"peak {self.peak:7.1f}/s = {self.ratio:5.2f} times, {self.early} before their Retry-After"
        )


def simulate(story: Story, tills: int, *, jitter: bool, away_s: float = 3600.0, each_s: float = 1200.0) -> Result:
    """Let a fleet sell for `each_s`, be without the upstream for `away_s`, and recover for `each_s`."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(_simulate(story, tills, jitter, away_s, each_s))


async def _simulate(story: Story, tills: int, jitter: bool, away_s: float, each_s: float) -> Result:
    loop = asyncio.get_running_loop()

    async def until(seconds: float) -> None:
        await asyncio.sleep(seconds - loop.time())

    startup_jitter = JITTER_AT_START_S if story == "power" and jitter else 0.0
    config = Config(delivery=DeliveryConfig(startup_jitter=startup_jitter))
    image = _empty_image()
    service = Service()
    fleet = [Till(number, service, config, image, jitter) for number in range(tills)]
    opening = random.Random(0)

    async def open_shop(till: Till) -> None:
        await asyncio.sleep(opening.random() * each_s / 4)
        await till.power_on()

    await asyncio.gather(*map(open_shop, fleet))
    begin_s, back_s, end_s = each_s, each_s + away_s, each_s * 2 + away_s
    await until(begin_s)
    service.state, service.back_s = ("maintenance" if story == "maintenance" else "away"), back_s
    if story == "power":
        await until(begin_s + 3 * SALE_EVERY_S)
        await asyncio.gather(*(till.power_off() for till in fleet))
    await until(back_s)
    service.state = "up"
    if story == "power":
        await asyncio.gather(*(till.power_on() for till in fleet))
    await until(end_s)
    await asyncio.gather(*(till.power_off() for till in fleet))
    sold, waiting = sum(till.sold for till in fleet), sum(s.pending for till in fleet for s in till.disk.lanes())
    assert len(service.stored) >= sold - waiting, "something was settled that never arrived"
    assert waiting < sold / 10, "the fleet has not recovered"
    return Result(story, jitter, service, (begin_s, back_s, end_s))


def _empty_image() -> bytes:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        schema.migrate(conn)
        return conn.serialize()


# -- the plot -----------------------------------------------------------------------------------


def svg(results: Sequence[Result]) -> str:
    """One panel for each story: requests a second over time, the control pale behind."""
    width, height, left = 900, 180, 60
    stories = [story for story in STORIES if any(result.story == story for result in results)]
    total = (height + 50) * len(stories) + 20
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + left + 20} {total}" '
             'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>']  # fmt: skip
    for row, story in enumerate(stories):
        top = 30 + row * (height + 50)
        shown = sorted((result for result in results if result.story == story), key=lambda result: result.jitter)
        most = 4.5 * shown[-1].steady
        lines.append(f'<text x="{left}" y="{top - 8}">{shown[-1]}</text>')
        for times, dash in ((1, "4 4"), (3, "1 3")):
            y = top + height - height * times * shown[-1].steady / most
            lines.append(f'<path d="M{left} {y:.1f}h{width}" stroke="#888" stroke-dasharray="{dash}"/>'
                         f'<text x="4" y="{y + 4:.1f}">{times} x steady</text>')  # fmt: skip
        for result in shown:
            points = " ".join(
                f"{left + width * i * BIN_S / result.end_s:.1f},{top + height - height * min(rate / most, 1):.1f}"
                for i, rate in enumerate(result.rates)
            )
            colour = "#06c" if result.jitter else "#e9a"
            lines.append(f'<polyline fill="none" stroke="{colour}" points="{points}"/>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def judged(results: Sequence[Result]) -> Iterator[str]:
    """What is not as it must be."""
    for result in results:
        if result.early:
            yield f"{result.story}: {result.early} requests before their Retry-After"
        if result.jitter and result.ratio > 3:
            yield f"{result.story}: the peak is {result.ratio:.1f} times the steady rate"
        if not result.jitter and result.story != "outage" and result.ratio <= 3:
            yield f"{result.story}: the control saw no herd, so neither would the simulation"


def _of(tills: int, which: tuple[Story, bool]) -> Result:
    return simulate(which[0], tills, jitter=which[1])


def _quiet() -> None:
    logging.getLogger("tillpost").setLevel(logging.ERROR)  # a till that loses its power gives up what it was at


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tills", type=int, default=1000)
    parser.add_argument("--plot", type=Path, help="write an SVG here")
    given = parser.parse_args()
    results = []
    with ProcessPoolExecutor(initializer=_quiet) as pool:
        for result in pool.map(
            partial(_of, given.tills), [(story, jitter) for story in STORIES for jitter in (True, False)]
        ):
            results.append(result)
            print(result, flush=True)
    if given.plot:
        given.plot.write_text(svg(results))
    wrong = [*judged(results)]
    print("\n".join(wrong) or "as it must be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
