"""What does it cost the collector to take records, by size of request and number of connections?

    python -m benchmarks.ingest [--quick]

The upstream is away, so that nothing but ingest is measured: HTTP, checks, the durable commit. The ceilings are
measured between the runs.
"""

from benchmarks import ceilings, report
from benchmarks.lab import Collector, Feeder, bodies, scratch
from benchmarks.report import Figure, Goal, Plot, Result, Table

SHAPES = ((500, 8), (100, 8), (10, 16), (1, 64), (1, 16))
"""Records a request, connections."""
RECORDS = {500: 60_000, 100: 40_000, 10: 15_000, 1: 4_000}


def once(per_request: int, connections: int, records: int) -> tuple[float, float]:
    """CPU us and wall us a record."""
    load = bodies(records, per_request)
    with scratch() as folder, Collector(folder) as collector:
        warm = Feeder(collector.address, bodies(min(records // 10, 5_000), per_request, seed=7), connections)
        warm.run()
        feeder, before = Feeder(collector.address, load, connections), collector.cpu_s
        seconds = feeder.run()
        return (collector.cpu_s - before) / records * 1e6, seconds / records * 1e6


def run(quick: bool) -> Result:
    rounds = 1 if quick else 5
    result = Result("What does it cost to take records?")
    table = Table("", ("Records a request", "Connections", "CPU us a record", "Wall us a record", "CPU / ceilings"))
    result.tables.append(table)
    found: dict[tuple[int, int], list[tuple[float, float]]] = {shape: [] for shape in SHAPES}
    ceiling: dict[tuple[int, int], list[float]] = {shape: [] for shape in SHAPES}
    parts = []
    for _ in range(rounds):
        parts.append(ceilings.measure())
        for shape in SHAPES:
            per_request, connections = shape
            found[shape].append(once(*shape, RECORDS[per_request]))
            with ceilings.BareServer() as bare:
                received = bare.request_us(bodies(RECORDS[per_request], per_request), connections)
            ceiling[shape].append(received / per_request)
    for shape in SHAPES:
        per_request, connections = shape
        cpu, wall = zip(*found[shape], strict=True)
        if per_request == 1:
            bound = ceiling[shape]
        else:
            bound = [r + p.us["decode"] + p.us["insert"] for r, p in zip(ceiling[shape], parts, strict=True)]
        ratio = Figure.of([c / b for c, b in zip(cpu, bound, strict=True)])
        table.rows.append((per_request, connections, Figure.of(cpu), Figure.of(wall), ratio))
        if shape == (500, 8):
            result.goals.append(Goal("ingest CPU, 500 records a request / ceilings", ratio.median, 1.25))
        if shape == (1, 64):
            result.goals.append(Goal("one record a request, 64 in flight / bare aiohttp", ratio.median, 1.4))
    result.denominators = [ceilings.denominator(name, parts) for name in ("receive", "decode", "insert")]
    result.plots.append(
        Plot("ingest", "Taking a record, CPU", "us CPU a record", log_y=True,
             bars=[(f"Tillpost, {p} a request, {c} connections", Figure.of([x[0] for x in found[p, c]]).median)
                   for p, c in SHAPES])
    )  # fmt: skip
    result.notes.append(
        "Ceilings: aiohttp's bare server, typed decode with split and join, one insert a lane and commit with FULL "
        "(for one record a request: the bare server alone)."
    )
    return result


if __name__ == "__main__":
    report.main(run, __doc__)
