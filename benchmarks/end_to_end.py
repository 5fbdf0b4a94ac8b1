"""What does a record cost from its arrival to its delivery, taken and delivered at once?

    python -m benchmarks.end_to_end [--quick]

500 records a request, 8 connections, the upstream answers at once: ingest and drain at the same time, as on a busy
day. The clock starts with the first request and stops with the last record at the sink. The ceilings are measured
between the runs.
"""

import time
from collections.abc import Sequence

from benchmarks import ceilings, report
from benchmarks.drain import BATCH, Delivered, table_of
from benchmarks.lab import SETTLED_S, Collector, Feeder, Sink, bodies, scratch, until
from benchmarks.report import Figure, Goal, Result

PER_REQUEST = 500
WARM = 6_000


def once(load: Sequence[bytes], records: int) -> Delivered:
    with scratch() as folder, Sink() as sink, Collector(folder, sink.url) as collector:
        Feeder(collector.address, bodies(WARM, PER_REQUEST, seed=7)).run()
        until(lambda: sink.records >= WARM, "what warms up arrives")
        time.sleep(SETTLED_S)
        feeder, before, requests = Feeder(collector.address, load), collector.cpu_s, sink.requests
        begun = time.monotonic()
        feeder.run()
        until(lambda: sink.records >= WARM + records, "all records arrive")
        seconds = time.monotonic() - begun
        time.sleep(SETTLED_S)
        cpu = collector.cpu_s - before
        assert collector.pending == 0
        fill = records / (sink.requests - requests) / BATCH * 100
        return Delivered(cpu / records * 1e6, seconds / records * 1e6, fill)


def run(quick: bool) -> Result:
    records, rounds = (60_000, 2) if quick else (150_000, 5)
    load, parts, found = bodies(records, PER_REQUEST), [], []
    for _ in range(rounds):
        parts.append(ceilings.measure())
        found.append(once(load, records))
    sums = [part.ingest_us + part.drain_us for part in parts]
    ratio = Figure.of([one.cpu_us / total for one, total in zip(found, sums, strict=True)])
    table, _ = table_of(records, found, ratio)
    return Result(
        "What does a record cost from its arrival to its delivery?",
        [table],
        [Goal("end to end CPU / ceilings", ratio.median, 1.45)],
        [ceilings.denominator(name, parts) for name in ceilings.LIKE],
        notes=["Ceilings: the sum of those of taking (500 a request) and of delivering (1,000 a request)."],
    )


if __name__ == "__main__":
    report.main(run, __doc__)
