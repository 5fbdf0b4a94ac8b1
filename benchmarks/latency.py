"""How long does a caller wait until its record is on the disk?

    python -m benchmarks.latency [--quick]

Open loop: requests of one record are due at a fixed pace, whether or not earlier ones are answered. A request's time
counts from when it is sent, or from when it was due if no connection is free; how late the caller itself is, which
sleeps between requests on the same two cores, stands apart. Meanwhile the collector delivers what it took to a sink.
Beside it, in the same run, what the disk takes for one commit of a single row, and how long a bare server lets the
same caller wait. Where the machine's host takes the processor away for milliseconds, tails are the host's: rounds in
which it hardly does are looked for, and judged if there are enough.
"""

import asyncio
import gc
import selectors
import statistics
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks import ceilings, machine, report
from benchmarks.lab import Collector, Sink, _spawn, bodies, cpu_s, request_of, scratch
from benchmarks.report import Figure, Goal, Plot, Result, Table

CONNECTIONS = 64
"""Kept open; when all are busy a request waits, and its time goes on."""
DISTURBED = 0.01
"""A share of the processors that the host gives to others: above it a round is disturbed."""
ENOUGH = 5
"""Undisturbed rounds that make a median; with fewer all rounds count."""


# -- a process that posts when it is time ---------------------------------------------------------


class _Pool:
    """Connections to the collector, the requests that wait for one, and how long each request took."""

    def __init__(self, requests: int) -> None:
        self.free: list[_Connection] = []
        self.waiting: deque[tuple[bytes, float]] = deque()
        self.took: list[float] = []
        self.late: list[float] = []
        self.requests, self.done = requests, asyncio.get_running_loop().create_future()

    def post(self, request: bytes, due: float) -> None:
        now = asyncio.get_running_loop().time()
        self.late.append(now - due)
        if self.free:
            self.free.pop().send(request, now)
        else:
            self.waiting.append((request, due))

    def answered(self, connection: "_Connection", seconds: float) -> None:
        self.took.append(seconds)
        if self.waiting:
            connection.send(*self.waiting.popleft())
        else:
            self.free.append(connection)
        if len(self.took) == self.requests:
            self.done.set_result(None)


class _Connection(asyncio.Protocol):
    def __init__(self, pool: _Pool) -> None:
        self.pool, self.answer, self.loop = pool, b"", asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.pool.free.append(self)

    def send(self, request: bytes, since: float) -> None:
        self.since = since
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        now = self.loop.time()
        self.answer += data
        if b"\r\n\r\n" in self.answer:
            assert b" 202 " in self.answer[:20], self.answer
            self.answer = b""
            self.pool.answered(self, now - self.since)


def _pace(address: str, load: Sequence[bytes], rate: float, out: Any) -> None:
    async def pace() -> tuple[list[float], list[float]]:
        loop, pool = asyncio.get_running_loop(), _Pool(len(load))
        requests = [request_of(address, body) for body in load]
        host, _, port = address.rpartition(":")
        for _ in range(CONNECTIONS):
            await loop.create_connection(lambda: _Connection(pool), host, int(port))
        gc.disable()
        out.send(None)
        begun = loop.time() + 0.1
        for i, request in enumerate(requests):
            due = begun + i / rate
            await asyncio.sleep(max(0.0, due - loop.time()))
            pool.post(request, due)
        await pool.done
        return pool.took, pool.late

    # select() sleeps microseconds; epoll, which asyncio would take, rounds up to whole milliseconds
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        out.send(runner.run(pace()))


class Paced(NamedTuple):
    p50_ms: float
    p99_ms: float
    cpu_us: float
    late_ms: float
    """How late the caller was itself, p99."""
    stolen: float
    """The share of the processors that the machine's host gave to others."""


def paced(server: Collector | ceilings.BareServer, rate: int, seconds: float) -> Paced:
    """Requests of one record at this rate, for so long."""
    load = bodies(round(rate * seconds), 1, seed=time.monotonic_ns())
    inlet, outlet = _spawn.Pipe(duplex=False)
    process = _spawn.Process(target=_pace, args=(server.address, load, rate, outlet))
    process.start()
    outlet.close()
    inlet.recv()  # connected
    before, stolen = cpu_s(server.pid), machine.Stolen()
    took, late = inlet.recv()
    cpu, share = cpu_s(server.pid) - before, stolen.share or 0.0
    process.join()
    return Paced(_percentile(took, 50), _percentile(took, 99), cpu / len(load) * 1e6, _percentile(late, 99), share)


def _percentile(seconds: Sequence[float], percent: int) -> float:
    """In milliseconds."""
    return statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1] * 1e3


# -- the question ---------------------------------------------------------------------------------


class Round(NamedTuple):
    commit_ms: float
    bare: Paced
    ours: Paced

    @property
    def ratio(self) -> float:
        return self.ours.p99_ms / self.commit_ms


def run(quick: bool) -> Result:
    rounds, most, seconds = (2, 2, 2.0) if quick else (5, 11, 4.0)
    slower: dict[int, list[Paced]] = {10: [], 100: []}
    found: list[Round] = []
    with scratch() as folder, Sink() as sink, Collector(folder, sink.url) as collector, ceilings.BareServer() as server:
        paced(collector, 100, 1.0)
        while len(found) < rounds or (len(found) < most and 0 < len(_quiet(found)) < ENOUGH):
            with scratch() as empty:
                commit_ms = ceilings.commit_ms(empty)
            found.append(Round(commit_ms, paced(server, 1000, 1.0), paced(collector, 1000, seconds)))
            if len(found) <= rounds:
                for rate, runs in slower.items():
                    runs.append(paced(collector, rate, 2.0))
    quiet = _quiet(found)
    judged = quiet if len(quiet) >= ENOUGH else found
    return _result(found, quiet, judged, slower)


def _quiet(found: Sequence[Round]) -> list[Round]:
    return [each for each in found if each.ours.stolen <= DISTURBED]


def _result(
    found: Sequence[Round], quiet: Sequence[Round], judged: Sequence[Round], slower: dict[int, list[Paced]]
) -> Result:
    table = Table(
        "", ("", "Requests a second", "Rounds", "p50 ms", "p99 ms", "p99 / a commit's p50", "the caller late, p99 ms",
             "CPU us a request"),
    )  # fmt: skip
    rows: list[tuple[str, int, Sequence[Paced], Sequence[Round]]] = [
        ("bare aiohttp", 1000, [each.bare for each in found], found),
        *(("Tillpost", rate, runs, found) for rate, runs in slower.items()),
        ("Tillpost", 1000, [each.ours for each in found], found),
        ("Tillpost, undisturbed", 1000, [each.ours for each in quiet], quiet),
    ]
    for name, rate, runs, beside in rows:
        if runs:
            p50, p99, cpu, late, _ = (Figure.of(column) for column in zip(*runs, strict=True))
            ratio = Figure.of([one.p99_ms / each.commit_ms for one, each in zip(runs, beside, strict=False)])
            table.rows.append((name, rate, len(runs), p50, p99, ratio, late, cpu))
    result = Result("How long does a caller wait until its record is on the disk?", [table])
    ratio = Figure.of([each.ratio for each in judged])
    result.goals.append(Goal("p99 at 1000 requests/s / a single-row commit's p50", ratio.median, 20))
    by_rate = {**slower, 1000: [each.ours for each in judged]}
    lines = [
        (name, [(rate, Figure.of([getattr(one, column) for one in runs]).median) for rate, runs in by_rate.items()])
        for name, column in (("p50", "p50_ms"), ("p99", "p99_ms"))
    ]
    result.plots.append(
        Plot("latency", "From sent to durable", "ms", lines=lines, x_label="requests a second", log_x=True)
    )
    commits = Figure.of([each.commit_ms for each in judged], "ms")
    stolen = Figure.of([100 * each.ours.stolen for each in found], "%")
    which = "the undisturbed rounds" if judged is quiet else "all rounds"
    result.notes += [
        f"A commit of a single row, p50: {commits}. At 10 a second p99 is about the slowest of a run.",
        f"The machine's host gave {stolen} of it to others meanwhile; in an undisturbed round at most {DISTURBED:.0%}. "
        f"Judged are {which}.",
    ]
    return result


if __name__ == "__main__":
    report.main(run, __doc__)
