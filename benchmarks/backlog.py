"""Does a backlog make the collector slower, larger, or later to start? And how many bytes of file is a record?

    python -m benchmarks.backlog [--quick]

Each probe starts a collector on a file that holds so many records already (the upstream is away), and posts 100,000
more. `buffer.max_size` is raised, for all alike; everything else is the default. About 3 GB on the disk for a while.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import report
from benchmarks.lab import Collector, Feeder, Sink, bodies, memory_mib, scratch, until
from benchmarks.report import Figure, Goal, Plot, Result, Table

PER_REQUEST = 500
PROBE = 100_000
WARM = 10_000
COPIED = 100_000
"""A file with a backlog up to this is copied for each probe; a larger one grows by what the probes add."""
EMPTY, SMALL, MILLION, LARGE = 0, 100_000, 1_000_000, 5_000_000
ROOM = ("buffer.max_size=4GiB",)


class Probe(NamedTuple):
    start_s: float
    start_cpu_s: float
    cpu_us: float
    wall_us: float
    peak_mib: float


def fill(folder: Path, pending: int, load: Sequence[bytes], held: int) -> None:
    """Bring a folder's file to so many records, with a load of `held`, as often as it takes."""
    folder.mkdir()
    rounds, rest = divmod(pending, held)
    part = load[: rest * len(load) // held]
    with Collector(folder, settings=ROOM) as collector:
        Feeder(collector.address, [*load] * rounds + [*part]).run()


def probe(folder: Path, pending: int, warm: Sequence[bytes], load: Sequence[bytes]) -> Probe:
    collector = Collector(folder, settings=ROOM)
    start_s = collector.start()
    try:
        start_cpu_s = collector.cpu_s
        assert collector.pending >= pending
        Feeder(collector.address, warm).run()
        feeder, before = Feeder(collector.address, load), collector.cpu_s
        seconds = feeder.run()
        cpu = collector.cpu_s - before
        return Probe(start_s, start_cpu_s, cpu / PROBE * 1e6, seconds / PROBE * 1e6, memory_mib(collector.pid, "VmHWM"))
    finally:
        collector.stop()


def probe_copy(template: Path, pending: int, warm: Sequence[bytes], load: Sequence[bytes]) -> Probe:
    with scratch() as folder:
        return probe(Path(shutil.copytree(template, folder / "copy")), pending, warm, load)


def deliver(folder: Path) -> tuple[int, float, float]:
    """Deliver a file nothing was delivered from: records, CPU us a record, and the most memory it took."""
    with Sink() as sink, Collector(folder, sink.url, settings=ROOM) as collector:
        held = collector.status()["ledger"]["accepted"]
        before, early = collector.cpu_s, sink.records
        until(lambda: sink.records >= held, "the backlog is delivered", 600)
        cpu = (collector.cpu_s - before) / (held - early)
        return held, cpu * 1e6, memory_mib(collector.pid, "VmHWM")


def run(quick: bool) -> Result:
    levels, rounds = ((EMPTY, 10_000, SMALL, MILLION), 2) if quick else ((EMPTY, 10_000, SMALL, MILLION, LARGE), 5)
    load, warm, large = bodies(PROBE, PER_REQUEST), bodies(WARM, PER_REQUEST, seed=7), bodies(PROBE, 10_000)
    payload = sum(map(len, load)) - PROBE - len(load)  # without brackets and commas
    found: dict[int, list[Probe]] = {level: [] for level in levels}
    with scratch() as folder:
        for level in levels:
            fill(folder / str(level), level, large if level == LARGE else load, PROBE)
        bytes_per_payload = (folder / str(MILLION) / "tillpost.db").stat().st_size / (payload * MILLION / PROBE)
        for _ in range(rounds):
            for level in levels:
                found[level].append((probe_copy if level <= COPIED else probe)(folder / str(level), level, warm, load))
        delivered, deliver_us, deliver_mib = deliver(folder / str(MILLION))
    table = Table("", ("Pending", "Ingest, CPU us a record", "wall us", "Peak MiB", "Ready after s", "CPU s"))
    for level, probes in found.items():
        start_s, start_cpu_s, cpu, wall, peak = (Figure.of(column) for column in zip(*probes, strict=True))
        table.rows.append((f"{level:,}", cpu, wall, peak, start_s, start_cpu_s))
    most = levels[-1]

    def ratio(of: int, to: int, column: str) -> float:
        pairs = zip(found[of], found[to], strict=True)
        return Figure.of([getattr(a, column) / getattr(b, column) for a, b in pairs]).median

    over = Figure.of([a.peak_mib - b.peak_mib for a, b in zip(found[MILLION], found[EMPTY], strict=True)])
    table_of_ratios = Table(
        "",
        ("Ratio", ""),
        [
            ("ready with 1 M pending / with an empty file", ratio(MILLION, EMPTY, "start_s")),
            ("the same, CPU", ratio(MILLION, EMPTY, "start_cpu_s")),
        ],
    )
    return Result(
        "What does a backlog cost?",
        [table, table_of_ratios],
        [
            Goal(f"ingest CPU with {most // MILLION} M pending / 100 k", ratio(most, SMALL, "cpu_us"), 1.10),
            Goal("memory at 1 M pending over empty", round(over.median, 1), 28.6, unit=" MiB"),
            Goal("file bytes / payload bytes", bytes_per_payload, 1.05),
        ],
        plots=[
            Plot("backlog", "Taking records with a backlog", "us CPU a record", x_label="records pending", log_x=True,
                 lines=[("500 a request", [(n, Figure.of([p.cpu_us for p in found[n]]).median)
                                           for n in levels if n])])
        ],
        notes=[
            "The file is weighed after a clean close, filled with requests of 500; its log and reserve, up to 32 MiB "
            "beside it, do not grow. Payload: the records' own bytes.",
            "Peak: the most a collector held from its start to the end of its probe.",
            f"Once, with the upstream back: {delivered:,} delivered for {report.number(deliver_us)} us CPU a record, "
            f"with {report.number(deliver_mib)} MiB at most.",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    report.main(run, __doc__)
