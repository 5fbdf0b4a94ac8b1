"""What does it cost that a record is on the disk before its request is answered?

    python -m benchmarks.durability [--quick]

Taking records with ``synchronous=FULL``, which is what we ship, against NORMAL (a power cut loses what was answered
last) and OFF (it may damage the file). The upstream is away.
"""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks import report
from benchmarks.lab import Collector, Feeder, bodies, scratch
from benchmarks.report import Figure, Goal, Plot, Result, Table

PROGRAMS = {
    "FULL": ("-m", "collector"),
    "NORMAL": ("-m", "benchmarks.unsynced", "NORMAL"),
    "OFF": ("-m", "benchmarks.unsynced", "OFF"),
}
SHAPES = {500: 8, 1: 64}
"""Records a request: connections."""


class Cost(NamedTuple):
    cpu_us: float
    wall_us: float


def once(program: Sequence[str], loads: dict[int, list[bytes]], warm: Sequence[bytes]) -> dict[int, Cost]:
    """By records a request, a record's cost."""
    found = {}
    with scratch() as folder, Collector(folder, program=program) as collector:
        Feeder(collector.address, warm).run()
        for per_request, load in loads.items():
            feeder, before = Feeder(collector.address, load, SHAPES[per_request]), collector.cpu_s
            seconds = feeder.run()
            records = len(load) * per_request
            found[per_request] = Cost((collector.cpu_s - before) / records * 1e6, seconds / records * 1e6)
    return found


def run(quick: bool) -> Result:
    rounds = 2 if quick else 5
    loads = {500: bodies(50_000 if quick else 150_000, 500), 1: bodies(1_000 if quick else 3_000, 1, seed=2)}
    warm = bodies(10_000, 500, seed=7)
    found: dict[str, list[dict[int, Cost]]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds):
        for name, program in PROGRAMS.items():
            found[name].append(once(program, loads, warm))

    def ratio(name: str, per_request: int) -> Figure:
        pairs = zip(found[name], found["OFF"], strict=True)
        return Figure.of([one[per_request].cpu_us / off[per_request].cpu_us for one, off in pairs])

    table = Table("", ("synchronous", "Records a request", "CPU us a record", "Wall us a record", "CPU / OFF"))
    result = Result("What does it cost that a record is on the disk before it is answered?", [table])
    for per_request, connections in SHAPES.items():
        bars = []
        for name, runs in found.items():
            cpu, wall = (Figure.of(column) for column in zip(*(one[per_request] for one in runs), strict=True))
            table.rows.append((name, per_request, cpu, wall, ratio(name, per_request)))
            bars.append((f"Tillpost, {name}" if name == "FULL" else name, cpu.median))
        result.plots.append(
            Plot(f"durability-{per_request}", f"Taking records, {per_request} a request, {connections} connections",
                 "us CPU a record", bars=bars)
        )  # fmt: skip
    result.goals.append(Goal("FULL / OFF, ingest CPU, 500 records a request", ratio("FULL", 500).median, 1.2))
    result.notes.append("NORMAL and OFF are no settings: benchmarks/unsynced.py opens the buffer so.")
    return result


if __name__ == "__main__":
    report.main(run, __doc__)
