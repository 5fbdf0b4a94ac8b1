"""What does it cost to deliver a backlog, and how full are the batches?

    python -m benchmarks.drain [--quick]

The file is filled while the upstream is away; a collector started on it then delivers to a sink that answers 202 at
once. What it used before it was ready is not counted, nor what it delivered by then. The ceilings are measured
between the runs.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks import ceilings, report
from benchmarks.lab import SETTLED_S, Collector, Feeder, Sink, bodies, scratch, until
from benchmarks.report import Figure, Goal, Result, Table

PER_REQUEST = 500
BATCH = 1000
"""Records in a full batch."""


class Delivered(NamedTuple):
    """What a record cost, in microseconds, and how full the batches were, in percent."""

    cpu_us: float
    wall_us: float
    fill: float


def table_of(records: int, found: Sequence[Delivered], ratio: Figure) -> tuple[Table, Figure]:
    """A row about all runs, and how full their batches were."""
    cpu, wall = Figure.of([one.cpu_us for one in found]), Figure.of([one.wall_us for one in found])
    fill = Figure.of([one.fill for one in found], "%")
    table = Table("", ("Records", "CPU us a record", "Wall us a record", "CPU / ceilings", "Batches are full to"))
    table.rows.append((f"{records:,}", cpu, wall, ratio, fill))
    return table, fill


def once(load: Sequence[bytes], records: int) -> Delivered:
    with scratch() as folder:
        with Collector(folder) as collector:
            Feeder(collector.address, load).run()
        with Sink() as sink, Collector(folder, sink.url) as collector:
            before, early, begun = collector.cpu_s, sink.records, time.monotonic()
            # not asked of the collector: answering would be part of what it used
            until(lambda: sink.records >= records, "all records arrive")
            seconds = time.monotonic() - begun
            time.sleep(SETTLED_S)
            cpu, delivered = collector.cpu_s - before, records - early
            assert collector.pending == 0
            return Delivered(
                cpu / delivered * 1e6, seconds / delivered * 1e6, sink.records / sink.requests / BATCH * 100
            )


def run(quick: bool) -> Result:
    records, rounds = (60_000, 2) if quick else (210_000, 5)  # of three lanes: no batch waits at the end for more
    load, parts, found = bodies(records, PER_REQUEST), [], []
    for _ in range(rounds):
        parts.append(ceilings.measure())
        found.append(once(load, records))
    ratio = Figure.of([one.cpu_us / part.drain_us for one, part in zip(found, parts, strict=True)])
    table, fill = table_of(records, found, ratio)
    return Result(
        "What does it cost to deliver a backlog?",
        [table],
        [
            Goal("drain CPU / ceilings", ratio.median, 1.9),
            Goal("batch fill with a backlog", fill.median, 95, ">=", "%"),
        ],
        [ceilings.denominator(name, parts) for name in ("read", "post", "delete")],
        notes=[
            f"Filled with requests of {PER_REQUEST}. Ceilings: one read, one POST and one delete a batch of {BATCH}."
        ],
    )


if __name__ == "__main__":
    report.main(run, __doc__)
