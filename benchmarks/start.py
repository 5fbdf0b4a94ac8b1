"""What does a start cost: of an application that imports `tracker`, and of the collector?

    python -m benchmarks.start [--quick]

Whole processes, from their beginning to their end or until they take records. The goal judges what ``import tracker``
adds to a Python that does nothing, measured beside it; as seconds mean little on another machine, over how slow this
one is just then.
"""

import os
import subprocess
import sys
import time
from typing import NamedTuple

from benchmarks import report
from benchmarks.lab import ROOT, Collector, scratch
from benchmarks.machine import slowness
from benchmarks.report import Figure, Goal, Result, Table

NOTHING, TRACKER = "pass", "import tracker"
AS_THERE = "as on the machine the goals were set on"
FOREIGN = ("collector", "aiohttp", "aiosqlite", "asyncio")
"""What an application that only tracks should not pay for."""


class Start(NamedTuple):
    cpu_s: float
    wall_s: float


def python(program: str) -> Start:
    """A Python process that runs this program."""
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return Start(used.ru_utime + used.ru_stime, time.monotonic() - begun)


def loaded() -> list[str]:
    """Which of the packages `FOREIGN` an ``import tracker`` brings in, a name for each module."""
    program = f"import tracker, sys; print(*[m for m in sys.modules if m.split('.')[0] in {FOREIGN!r}])"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    return found.stdout.split()


def collector() -> Start:
    with scratch() as folder:
        one = Collector(folder)
        wall_s = one.start()
        found = Start(one.cpu_s, wall_s)
        one.kill()  # its file is empty
        return found


def run(quick: bool) -> Result:
    rounds = 3 if quick else 15
    python(TRACKER)  # leaves compiled modules behind, as an installation does
    found: dict[str, list[Start]] = {"python -c pass": [], "python -c 'import tracker'": [], "tillpost run": []}
    nothing, tracker, ready = found.values()
    slow: list[float] = []
    for round_ in range(rounds):
        nothing.append(python(NOTHING))
        tracker.append(python(TRACKER))
        slow.append(slowness("interpreter"))
        if round_ % 3 == 0:
            ready.append(collector())
    table = Table("", ("Process", "CPU s", "Wall s"))
    for name, starts in found.items():
        table.rows.append((name, *(Figure.of(column) for column in zip(*starts, strict=True))))
    added = [
        Figure.of([a - b for a, b in zip(*pair, strict=True)])
        for pair in zip(zip(*tracker, strict=True), zip(*nothing, strict=True), strict=True)
    ]
    weighed = Figure.of([cpu_s / times for cpu_s, times in zip(added[0].samples, slow, strict=True)])
    table.rows.insert(2, ("what import tracker adds", *added))
    table.rows.insert(3, (f"the same, {AS_THERE}", weighed, ""))
    modules = loaded()
    ours = [name for name in modules if name.split(".")[0] == "collector"]
    return Result(
        "What does a start cost?",
        [table],
        [
            Goal(
                "CPU that import tracker adds, as on the machine the goals were set on", weighed.median, 0.1, unit=" s"
            ),
            Goal("modules of collector that import tracker loads", len(ours), 0),
        ],
        notes=[
            "tillpost run: with an empty file, until it takes records.",
            f"Of {', '.join(FOREIGN)}, import tracker loads " + (", ".join(modules) if modules else "nothing") + ".",
        ],
    )


if __name__ == "__main__":
    report.main(run, __doc__)
