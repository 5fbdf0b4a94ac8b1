"""What does a collector use that has nothing to do?

    python -m benchmarks.idle [--quick]

Default configuration, the upstream up, everything delivered: the share of a core over twenty seconds.
"""

import time

from benchmarks import report
from benchmarks.lab import Collector, Feeder, Sink, bodies, memory_mib, scratch, until
from benchmarks.report import Figure, Goal, Result, Table

RECORDS = 1_000
CALM_S = 3.0
"""Until the last batch has left and what a start does late is done."""


def run(quick: bool) -> Result:
    windows, window_s = (2, 2.0) if quick else (5, 4.0)
    shares = []
    with scratch() as folder, Sink() as sink, Collector(folder, sink.url) as collector:
        Feeder(collector.address, bodies(RECORDS, 100)).run()
        until(lambda: sink.records >= RECORDS, "everything is delivered")
        time.sleep(CALM_S)
        for _ in range(windows):
            before, begun = collector.cpu_s, time.monotonic()
            time.sleep(window_s)
            shares.append((collector.cpu_s - before) / (time.monotonic() - begun) * 100)
        memory = memory_mib(collector.pid)
    share = Figure.of(shares, "%")
    table = Table("", ("Seconds", "Share of a core", "Memory, MiB"), [(f"{windows} x {window_s:g}", share, memory)])
    return Result(
        "What does an idle collector use?",
        [table],
        [Goal("idle CPU, share of a core", sum(shares) / windows, 0.2, unit=" %")],
    )


if __name__ == "__main__":
    report.main(run, __doc__)
