"""Power cuts: record a run, cut it off at random points, start the collector's buffer on what is left.

``python -m tests.faults.power_cuts 10000`` makes that many cuts and prints what came of them.
``--synchronous NORMAL`` is the control: it must lose acknowledged records.
"""

import argparse
import asyncio
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from collector.buffer import Buffer
from collector.database import Synchronous
from collector.files import beside
from tests.faults import needs
from tests.faults.disk import SOURCE, Disk, Entry, Mercy, read
from tests.faults.oracle import Journal, judge
from tests.faults.recorded_work import FILE, MAX_SIZE

ROOT: Final = Path(__file__).parents[2]
REQUESTS: Final = 160
"""Appends of one recorded run, spread over a clean stop and a kill."""
CUTS: Final = 500
"""Cuts into one recording, by the command."""


@dataclass
class Recording:
    """One run, killed once and finished, as it was written down."""

    entries: list[Entry]
    folder: Path
    """What the run left on the disk when nobody cut its power."""


@dataclass
class Report:
    """What came of some cuts."""

    cuts: int = 0
    at_risk: int = 0
    """Cuts that had something to take."""
    acknowledged: int = 0
    """Records acknowledged before the cut, summed over the cuts."""
    lossy: int = 0
    """Cuts that lost acknowledged records."""
    unopened: int = 0
    """Cuts after which the buffer did not open."""
    faults: list[str] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        for name in ("cuts", "at_risk", "acknowledged", "lossy", "unopened"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.faults += other.faults


def record(folder: Path, seed: int, synchronous: Synchronous = "FULL", requests: int = REQUESTS) -> Recording:
    """Record a run that is killed in the middle of a write, taken up again, and finished."""
    library, root, log = needs.preload(SOURCE, folder), folder / "root", folder / "log"
    root.mkdir()
    arguments = [str(root), str(log), synchronous, str(seed), str(requests)]
    for kill_at in (random.Random(seed).randrange(1500, 3000), None):
        environment = {**os.environ, "LD_PRELOAD": str(library), "RECORD_ROOT": str(root), "RECORD_LOG": str(log)}
        if kill_at is not None:
            environment["RECORD_KILL_AT"] = str(kill_at)
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.recorded_work", *arguments],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        expected = 0 if kill_at is None else -signal.SIGKILL
        assert done.returncode == expected, f"{done.returncode}: {done.stderr}"
    return Recording(read(log), root)


def cut(recording: Recording, cuts: int, seed: int) -> Report:
    """Cut a recording off at so many random points and look at what is left each time."""
    return asyncio.run(_cut(recording, cuts, random.Random(seed)))


async def _cut(recording: Recording, cuts: int, chance: random.Random) -> Report:
    report, disk, journal = Report(), Disk(), Journal()
    marks = [point for point, entry in enumerate(recording.entries) if entry.kind == "k"]
    # some anywhere, in a checkpoint's burst of writes too; most when something had just begun or ended
    anywhere = chance.choices(range(len(recording.entries)), k=cuts // 4)
    points = Counter(anywhere + chance.choices(marks, k=cuts - len(anywhere)))
    for point, entry in enumerate(recording.entries):
        if entry.kind == "k":
            journal.apply(entry.payload)
        else:
            disk.apply(entry)
        for _ in range(points[point]):
            with tempfile.TemporaryDirectory(dir=_memory()) as folder:
                target = Path(folder) / "disk"
                disk.write(target, Mercy.drawn(chance))
                faults = await _start_on(target, journal, report)
            report.cuts += 1
            report.at_risk += disk.at_risk > 0
            report.acknowledged += len(journal.states)
            report.faults += [f"after entry {point}: {fault}" for fault in faults]
    return report


async def _start_on(disk: Path, journal: Journal, report: Report) -> list[str]:
    """Start the buffer on a disk; what is wrong with it, in words."""
    try:
        buffer = await Buffer.open(disk / FILE, max_size=MAX_SIZE)
    except Exception as error:
        report.unopened += 1
        return [f"does not open: {type(error).__name__}: {error}"]
    try:
        verdict = await judge(buffer, journal)
        report.lossy += bool(verdict.lost)
        quarantined = beside(disk / FILE, ".quarantine").exists()
        return verdict.faults + ["its files were taken for damaged"] * quarantined
    except Exception as error:
        return [f"cannot be read: {type(error).__name__}: {error}"]
    finally:
        await buffer.close()


def _memory() -> str | None:
    """A folder in memory where there is one: thousands of disks are written and thrown away."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _record_and_cut(seed: int, synchronous: Synchronous, cuts: int) -> Report:
    folder = Path(tempfile.mkdtemp())
    try:
        return cut(record(folder, seed, synchronous), cuts, seed)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cuts", type=int, nargs="?", default=10_000)
    parser.add_argument("--synchronous", choices=("FULL", "NORMAL", "OFF"), default="FULL")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.disable()  # of the control's thousand damaged buffers
    begun, total = time.monotonic(), Report()
    runs = [(options.seed + i, min(CUTS, options.cuts - i * CUTS)) for i in range(-(-options.cuts // CUTS))]
    with ProcessPoolExecutor() as pool:
        for report in pool.map(
            _record_and_cut, [seed for seed, _ in runs], [options.synchronous] * len(runs), [n for _, n in runs]
        ):
            total.add(report)
    for fault in total.faults[:20]:
        print(fault)
    print(
        f"{total.cuts} cuts into {len(runs)} runs with synchronous={options.synchronous}, "
        f"{total.acknowledged / total.cuts:.0f} records acknowledged before a cut on average: "
        f"{total.lossy} cuts lost acknowledged records, {total.unopened} left a file that does not open, "
        f"{len(total.faults)} faults in all; {time.monotonic() - begun:.0f} s"
    )
    sys.exit(bool(total.faults))


if __name__ == "__main__":
    main()
