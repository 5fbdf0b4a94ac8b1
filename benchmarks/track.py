"""What does one call cost the application: CPU of the calling thread, wall, p50 and p99?

    python -m benchmarks.track [--quick]

The sink takes requests and never answers, so that each library's own thread is parked and only the call is left;
mixpanel sends inside the call, so it is answered. Each sample is a process of its own, the libraries take turns.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report
from benchmarks.lab import apart, scratch
from benchmarks.peers.catalogue import LIBRARIES, PEERS, SIDECAR, SNOWPLOW, Peer, Setting, described
from benchmarks.peers.sink import ANSWERS, HANGS, Sink
from benchmarks.report import Denominator, Figure, Goal, Plot, Result, Table

WARM = 200
CALLS = 4_000
"""Twice, first as a whole and then one by one; all of them fit into every library's default queue."""
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


def rows() -> list[tuple[Peer, Setting]]:
    """Every library at its defaults; snowplow-tracker, which a goal is about, also in its cheapest form."""
    found: list[tuple[Peer, Setting]] = [(SIDECAR, {}), (SNOWPLOW, SNOWPLOW.settings[-1])]
    return found + [(peer, peer.settings[0]) for peer in LIBRARIES]


def run(quick: bool) -> Result:
    result = Result("What does one call of track() cost the application?")
    table = Table("", ("Library", "Setting", "CPU us a call", "Wall us", "p50 us", "p99 us", "A returned call means"))
    result.tables.append(table)
    taking_part = [(peer, setting) for peer, setting in rows() if not peer.missing]
    samples: list[list[Cost]] = [[] for _ in taking_part]
    with Sink() as sink, scratch() as folder:
        for turn in range(2 if quick else 5):
            for place, (peer, setting) in enumerate(taking_part):
                sink.counts.mode = ANSWERS if peer.name.startswith("mixpanel") else HANGS
                own = folder / f"{turn}-{place}"
                own.mkdir()
                samples[place].append(apart(calls, peer.name, setting, sink.url, own))
    for (peer, setting), costs in zip(taking_part, samples, strict=True):
        figures = (Figure.of([getattr(cost, part) for cost in costs]) for part in ("cpu", "wall", "p50", "p99"))
        name = "Tillpost: checked, typed, stamped" if peer is SIDECAR else peer.label
        table.rows.append((name, described(setting), *figures, peer.promise))
    table.rows += [(peer.name, "", *(["-"] * 4), peer.missing) for peer in LIBRARIES if peer.missing]
    table.rows.sort(key=lambda row: row[2].median if isinstance(row[2], Figure) else float("inf"))
    result.plots.append(
        Plot("track", "One call of track()", "us CPU of the calling thread",
             bars=[(f"{row[0]}, {row[1]}", row[2].median) for row in table.rows if isinstance(row[2], Figure)])
    )  # fmt: skip
    if not SNOWPLOW.missing:
        by_peer = {place: [cost.cpu for cost in costs] for place, costs in enumerate(samples)}
        theirs = min((by_peer[place] for place, (peer, _) in enumerate(taking_part) if peer is SNOWPLOW), key=sum)
        ratio = Figure.of([our / their for our, their in zip(by_peer[0], theirs, strict=True)])
        result.goals.append(Goal("track() CPU, validated and stamped / snowplow-tracker's", ratio.median, 0.5))
        result.denominators.append(Denominator("snowplow-tracker's call, CPU us", Figure.of(theirs).median, LIKE_US))
    return result


if __name__ == "__main__":
    report.main(run, __doc__)
