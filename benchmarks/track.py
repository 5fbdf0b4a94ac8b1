"""What does one call cost the application: CPU of the calling thread, wall, p50 and p99?

    python -m benchmarks.track [--quick]

The sink takes requests and never answers, so that each library's own thread is parked and only the call is left;
mixpanel sends inside the call, so it is answered. Each sample is a process of its own, the libraries take turns.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import report
from benchmarks.lab import apart, scratch
from benchmarks.machine import slowness
from benchmarks.peers.catalogue import LIBRARIES, MIXPANEL, PEERS, SIDECAR, SNOWPLOW, Peer, Setting, described
from benchmarks.peers.sink import ANSWERS, HANGS, Sink
from benchmarks.report import Denominator, Figure, Goal, Plot, Result, Table

WARM = 200
CALLS = 4_000
"""Twice, first as a whole and then one by one; all of them fit into every library's default queue."""
TURNS, JUDGED_TURNS = 5, 11
"""Of everybody, and of those that a goal is about."""
LIKE_US = 18.2
"""snowplow-tracker's call on a like machine, when the goal was set."""


@dataclass
class Cost:
    """Microseconds a call: CPU of the calling thread, wall, median and 99th percentile of wall."""

    cpu: float
    wall: float
    p50: float
    p99: float


def calls(name: str, setting: Setting, target: str, folder: Path) -> Cost:
    """In a process of its own: the cost of `track`."""
    session = PEERS[name].open(target, folder, **setting)
    for number in range(WARM):
        session.track(number)
    time.sleep(0.5)  # until what sends has met the silence
    cpu, wall = time.thread_time(), time.perf_counter()
    for number in range(CALLS):
        session.track(number)
    cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
    took = []
    for number in range(CALLS):
        begun = time.perf_counter_ns()
        session.track(number)
        took.append(time.perf_counter_ns() - begun)
    took.sort()
    return Cost(cpu / CALLS * 1e6, wall / CALLS * 1e6, took[CALLS // 2] / 1e3, took[CALLS * 99 // 100] / 1e3)


@dataclass
class Row:
    """A library with one setting, and what was measured of it."""

    peer: Peer
    setting: Setting
    costs: list[Cost] = field(default_factory=list)
    weighed: list[float] = field(default_factory=list)
    """The CPU of each over how slow the machine was just then."""

    @property
    def judged(self) -> bool:
        return self.peer in (SIDECAR, SNOWPLOW)

    def figure(self, part: str) -> Figure:
        return Figure.of([getattr(cost, part) for cost in self.costs])

    @property
    def name(self) -> str:
        return "Tillpost: typed, checked, stamped" if self.peer is SIDECAR else self.peer.label


def taking_part() -> list[Row]:
    """Everybody at the defaults; snowplow-tracker, which a goal is about, also in its cheapest form."""
    rows = [Row(SIDECAR, {}), Row(SNOWPLOW, {}), Row(SNOWPLOW, SNOWPLOW.settings[-1])]
    rows += [Row(peer, {}) for peer in LIBRARIES if peer is not SNOWPLOW]
    return [row for row in rows if not row.peer.missing]


def run(quick: bool) -> Result:
    result = Result("What does one call of track() cost the application?")
    rows = taking_part()
    with Sink() as sink, scratch() as folder:
        for turn in range(2 if quick else JUDGED_TURNS):
            for place, row in enumerate(rows):
                if row.judged or turn < TURNS:
                    sink.counts.mode = ANSWERS if row.peer is MIXPANEL else HANGS
                    own = folder / f"{turn}-{place}"
                    own.mkdir()
                    row.costs.append(apart(calls, row.peer.name, row.setting, sink.url, own))
                    row.weighed.append(row.costs[-1].cpu / slowness("interpreter"))
    table = Table("", ("Library", "Setting", "CPU us a call", "Wall us", "p50 us", "p99 us", "A returned call means"))
    by_cost = sorted(rows, key=lambda row: row.figure("cpu").median)
    for row in by_cost:
        figures = [row.figure(part) for part in ("cpu", "wall", "p50", "p99")]
        table.rows.append((row.name, described(row.setting), *figures, row.peer.promise))
    table.rows += [(peer.name, "", *(["-"] * 4), peer.missing) for peer in LIBRARIES if peer.missing]
    result.tables.append(table)
    bars = [(f"{row.name}, {'tuned' if row.setting else 'default'}", row.figure("cpu").median) for row in by_cost]
    result.plots.append(Plot("track", "One call of track()", "us CPU of the calling thread", bars=bars))
    theirs = [row for row in by_cost if row.peer is SNOWPLOW]
    if theirs:
        pairs = zip(rows[0].costs, theirs[0].costs, strict=True)
        ratio = Figure.of([our.cpu / their.cpu for our, their in pairs])
        result.goals.append(Goal("track() CPU, validated and stamped / snowplow-tracker's", ratio.median, 0.5))
        weighed = Figure.of(theirs[0].weighed)
        result.denominators.append(Denominator("snowplow-tracker's track(), CPU us", weighed, LIKE_US))
    return result


if __name__ == "__main__":
    report.main(run, __doc__)
