"""``python -m tests.faults.backlog 1000000``: what a large backlog costs. Exits 1 outside the limits of guarantee G7.

Twice: records that came a thousand to a request, and one by one. Each time a real collector starts on
them, tries in vain to deliver, is asked about them, is killed, starts again, and delivers some; beside it
an empty one does the same. Printed are the seconds from starting the process to the first 202, and by how much the
most memory it ever held exceeds the empty one's.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from collector.demo.processes import Sidecar, wait_for
from collector.kinds import Lane, Run
from collector.testing import FakeUpstream
from collector.work import Work
from tests.collector.buffers import BULK, EMAIL, SALES, T0, UUID, opened
from tests.end_to_end import clients
from tests.end_to_end.clients import event, post, sale

MIB = 1024 * 1024
MEMORY_MIB = 30.0
START_S = 2.0
LANES = (EMAIL, UUID, BULK, SALES)
NOBODY = "http://127.0.0.1:9"  # discard: nothing listens there
SETTINGS = {"delivery.backoff_base": "50ms", "delivery.backoff_max": "200ms", "buffer.max_size": "2GiB"}


class Cost(NamedTuple):
    """Of one collector."""

    start_s: float
    again_s: float
    """After SIGKILL."""
    peak: int
    """Bytes of memory, the most it ever held."""


async def fill(path: Path, count: int, per_chunk: int) -> None:
    """A buffer as an outage leaves it: `count` records in four lanes, so many to a chunk."""
    async with opened(path, max_size=2048 * MIB) as buffer:
        for start in range(0, count, 1000):

            def unit(work: Work, start: int = start) -> None:
                lane = LANES[start // 1000 % len(LANES)]
                for at in range(start, min(start + 1000, count), per_chunk):
                    records = [_made(lane, i) for i in range(at, min(at + per_chunk, count))]
                    work.ledger["accepted"] += len(records)
                    work.insert_chunk(lane, records, [Run(len(records), T0, None, 0)], T0 + start)

            await buffer.run(unit)
        assert buffer.ledger()["pending"] == count


def _made(lane: Lane, number: int) -> bytes:
    identifier = clients.UUID if lane == UUID else clients.EMAIL
    made = sale(f"T-07/{number}") if lane == SALES else event(f"s{number}", identifier)
    return json.dumps(made, separators=(",", ":")).encode()


def cost(folder: Path, pending: int) -> Cost:
    """What a collector costs on the buffer in this folder."""
    begun = time.monotonic()
    sidecar = Sidecar(folder, NOBODY, SETTINGS, "k")
    try:
        accept(sidecar, "first")
        start_s = time.monotonic() - begun
        wait_for("attempts", lambda: all(lane["last_error"] for lane in sidecar.status()["lanes"]))
        for i in range(20):
            post(sidecar.address, "/v4/events/batch", [event(f"more-{i}-{j}") for j in range(1000)])
            assert sidecar.status()["ledger"]["pending"] == pending + 2 + (i + 1) * 1000
        peak = peak_memory(sidecar)
        sidecar.kill()
        with FakeUpstream(api_key="k") as fake:
            sidecar.arguments[sidecar.arguments.index(NOBODY)] = fake.url
            begun = time.monotonic()
            sidecar.start()
            accept(sidecar, "again")
            again_s = time.monotonic() - begun
            wait_for("deliveries", lambda: sidecar.status()["ledger"]["delivered"] >= 20_000)
            peak = max(peak, peak_memory(sidecar))
            sidecar.kill()
    finally:
        sidecar.close()
    return Cost(start_s, again_s, peak)


def accept(sidecar: Sidecar, name: str) -> None:
    assert post(sidecar.address, "/v4/events/batch", [event(name)])[0] == 202
    assert post(sidecar.address, "/v4/transactions/batch", [sale(name)])[0] == 202


def peak_memory(sidecar: Sidecar) -> int:
    """Bytes, the most the process ever held."""
    status = Path(f"/proc/{sidecar.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


def main(count: int) -> int:
    """The exit status: 1 when a limit was exceeded."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "empty"
        folder.mkdir()
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        empty, exceeded = cost(folder, 0), False
        print(f"{'nothing pending':38} {empty.peak / MIB:6.1f} MiB  {empty.start_s:.2f} s, {empty.again_s:.2f} s again")
        for per_chunk, how in ((1000, "a thousand to a request"), (1, "one by one")):
            folder = Path(name) / str(per_chunk)
            folder.mkdir()
            asyncio.run(fill(folder / "tillpost.db", count, per_chunk))
            size = (folder / "tillpost.db").stat().st_size
            full = cost(folder, count)
            more = (full.peak - empty.peak) / MIB
            exceeded |= more > MEMORY_MIB or max(full.start_s, full.again_s) > START_S
            print(
                f"{count} pending, {how:{25 - len(str(count))}} {more:+6.1f} MiB  {full.start_s:.2f} s, "
                f"{full.again_s:.2f} s again  ({size / MIB:.0f} MiB on disk)"
            )
    print(f"limits: {MEMORY_MIB:+.0f} MiB, {START_S:.1f} s: {'EXCEEDED' if exceeded else 'kept'}")
    return int(exceeded)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
