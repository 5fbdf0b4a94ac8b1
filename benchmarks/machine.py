"""How fast is this machine, beside the one the goals were set on?

A denominator that is far above what it was there makes every ratio look good, so a run with one is not valid. But
machines differ, and one that is slow at everything is slow at numerator and denominator alike. So the machine is
weighed, with work that has nothing to do with us: the standard library, a bare commit, a bare socket. Beside each
measurement, because a virtual machine may be twice as fast a minute later.
"""

import asyncio
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from benchmarks.lab import Feeder, Listening, bodies, cpu_s, scratch

Work = Literal["interpreter", "disk", "network"]
LIKE_US: Final[dict[Work, float]] = {"interpreter": 2.65 + 1.40, "disk": 83.0, "network": 27.0}
"""CPU there: uuid4 and isoformat; a commit of one row, FULL; a request of 500 records to a bare asyncio protocol."""


_found: dict[Work, list[float]] = {work: [] for work in LIKE_US}


def slowness(work: Work) -> float:
    """How many times as long this machine takes, now."""
    measured: dict[Work, Callable[[], float]] = {"interpreter": _interpreter, "disk": _disk, "network": _network}
    _found[work].append(measured[work]() / LIKE_US[work])
    return _found[work][-1]


def _interpreter(times: int = 10_000) -> float:
    begun = time.process_time()
    for _ in range(times):
        uuid.uuid4()
        datetime.now(UTC).isoformat()
    return (time.process_time() - begun) / times * 1e6


def _disk(commits: int = 200) -> float:
    from benchmarks.ceilings import connect

    with scratch() as folder:
        conn = connect(folder / "single.db")
        begun = time.process_time()
        for i in range(commits):
            conn.execute("INSERT INTO chunks VALUES (?, 1, x'00000000', ?)", (i, bytes(340)))
        spent = time.process_time() - begun
        conn.close()
    return spent / commits * 1e6


class _Discard(asyncio.Protocol):
    """Reads a request, keeps nothing of it, answers."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.missing = transport, 0

    def data_received(self, data: bytes) -> None:
        if not self.missing:
            end = data.index(b"\r\n\r\n") + 4
            self.missing = int(data[data.index(b"Length:") + 7 : end]) + end
        self.missing -= len(data)
        if not self.missing:
            self.transport.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")


def _network(requests: int = 200) -> float:
    with Listening(_Discard) as server:
        feeder, before = Feeder(server.address, bodies(500, 500) * requests, 16), cpu_s(server.pid)
        feeder.run()
        return (cpu_s(server.pid) - before) / requests * 1e6


class Stolen:
    """What the host of a virtual machine took from it since this was made (steal in ``/proc/stat``).

    It spoils no ratio of CPU times, but every tail of latencies.
    """

    def __init__(self) -> None:
        self._before = _ticks()

    @property
    def share(self) -> float | None:
        """Of the CPU time there was; None where it is not known."""
        spent = [after - before for before, after in zip(self._before, _ticks(), strict=True)]
        return spent[7] / max(sum(spent[:8]), 1) if len(spent) > 7 else None

    def __str__(self) -> str:
        share = "not known here" if self.share is None else f"{self.share:.1%}"
        return f"CPU time that the machine's host gave to others meanwhile (steal): {share}"


def _ticks() -> list[int]:
    try:
        return list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]))
    except OSError:
        return []


def about() -> str:
    """A line for the results."""
    ranges = {work: sorted(found) for work, found in _found.items() if found}
    weighed = ", ".join(f"{found[0]:.2f} to {found[-1]:.2f} ({work})" for work, found in ranges.items())
    return f"- Times as slow as the machine the goals were set on, weighed again and again: {weighed}"
