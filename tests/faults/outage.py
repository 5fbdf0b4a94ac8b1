"""``python -m tests.faults.outage 72 64``: so many hours offline at 50 records/s, into a buffer of so many MiB.

Once for each policy. Exits 1 when the files were ever larger than `buffer.max_size` (guarantee G7) or a record went
uncounted (G2).
"""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from collector.admission import Policy
from collector.buffer import Full
from tests.collector.buffers import BULK, EMAIL, T0, UUID, adds_up, opened, parcel, record

MIB = 1024 * 1024
POLICIES: tuple[Policy, ...] = ("refuse", "discard-oldest")
LANES = (EMAIL, UUID, BULK)


class Minutes:
    """A clock that is turned by hand."""

    ms = T0

    def wall_ms(self) -> int:
        return self.ms

    def boot_ms(self) -> int:
        return self.ms - T0 + 1_000_000

    def boot_id(self) -> str:
        return "boot-1"


class Outage(NamedTuple):
    """What became of the records, and the most bytes the files ever had."""

    sent: int
    refused: int
    ledger: dict[str, int]
    most: int

    def within(self, max_size: int) -> bool:
        """Whether both the files and the counts are as they must be."""
        counted = adds_up(self.ledger) and self.ledger["accepted"] == self.sent - self.refused
        return counted and self.ledger["lost"] == 0 and self.most <= max_size


async def outage(folder: Path, minutes: int, max_size: int, when_full: Policy) -> Outage:
    """Three thousand records a minute, a thousand for each of three lanes, and nobody who takes them."""
    clock = Minutes()
    records = [[record(f"{lane.identifier}-{lane.priority}-{i}") for i in range(1000)] for lane in LANES]
    sent = refused = most = 0
    async with opened(folder / "tillpost.db", max_size=max_size, when_full=when_full, clock=clock) as buffer:
        for _ in range(minutes):
            clock.ms += 60_000
            for lane, some in zip(LANES, records, strict=True):
                sent += len(some)
                try:
                    await buffer.append([parcel(some, lane)])
                except Full:
                    refused += len(some)
            most = max(most, size_of(folder))
        ledger = buffer.ledger()
    return Outage(sent, refused, ledger, max(most, size_of(folder)))


def size_of(folder: Path) -> int:
    """Bytes of every file there."""
    return sum(file.stat().st_size for file in folder.iterdir())


def main(hours: int, mebibytes: int) -> int:
    """The exit status."""
    exceeded = False
    for when_full in POLICIES:
        with tempfile.TemporaryDirectory() as folder:
            done = asyncio.run(outage(Path(folder), hours * 60, mebibytes * MIB, when_full))
        exceeded |= not done.within(mebibytes * MIB)
        print(
            f"{when_full}: {done.sent} records in {hours} h, {done.refused} refused, {done.ledger['discarded']} "
            f"discarded, {done.ledger['pending']} kept; at most {done.most / MIB:.1f} of {mebibytes} MiB on disk",
            flush=True,
        )
    print("EXCEEDED" if exceeded else "kept")
    return int(exceeded)


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*given, *(72, 64)[len(given) :]))
