"""How long does a caller wait until its record is on the disk?

    python -m benchmarks.latency [--quick]

Open loop: requests of one record are due at a fixed pace, whether or not earlier ones are answered, and their time
counts from when they were due. Meanwhile the collector delivers what it took to a sink. Beside it, in the same run,
what the disk takes for one commit of a single row, and how long a bare server lets the same caller wait.
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


# -- a process that posts when it is time ---------------------------------------------------------


class _Pool:
    """Connections to the collector, the requests that wait for one, and how long each request took."""

    def __init__(self, requests: int) -> None:
        self.free: list[_Connection] = []
        self.waiting: deque[tuple[bytes, float]] = deque()
        self.took: list[float] = []
        self.requests, self.done = requests, asyncio.get_running_loop().create_future()

    def post(self, request: bytes, due: float) -> None:
        if self.free:
            self.free.pop().send(request, due)
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

    def send(self, request: bytes, due: float) -> None:
        self.due = due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        now = self.loop.time()
        self.answer += data
        if b"\r\n\r\n" in self.answer:
            assert b" 202 " in self.answer[:20], self.answer
            self.answer = b""
            self.pool.answered(self, now - self.due)


def _pace(address: str, load: Sequence[bytes], rate: float, out: Any) -> None:
    async def pace() -> list[float]:
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
        return pool.took

    # select() sleeps microseconds; epoll, which asyncio would take, rounds up to whole milliseconds
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        out.send(runner.run(pace()))


class Paced(NamedTuple):
    p50_ms: float
    p99_ms: float
    cpu_us: float


def paced(server: Collector | ceilings.BareServer, rate: int, seconds: float) -> Paced:
    """Requests of one record at this rate, for so long."""
    load = bodies(round(rate * seconds), 1, seed=time.monotonic_ns())
    inlet, outlet = _spawn.Pipe(duplex=False)
    process = _spawn.Process(target=_pace, args=(server.address, load, rate, outlet))
    process.start()
    outlet.close()
    inlet.recv()  # connected
    before = cpu_s(server.pid)
    took: list[float] = inlet.recv()
    cpu = cpu_s(server.pid) - before
    process.join()
    percentiles = statistics.quantiles(took, n=100, method="inclusive")
    return Paced(percentiles[49] * 1e3, percentiles[98] * 1e3, cpu / len(load) * 1e6)


# -- the question ---------------------------------------------------------------------------------


def run(quick: bool) -> Result:
    rounds, seconds = (2, {10: 1.0, 100: 1.0, 1000: 2.0}) if quick else (7, {10: 3.0, 100: 2.0, 1000: 4.0})
    found: dict[int, list[Paced]] = {rate: [] for rate in seconds}
    bare, commits, stolen = [], [], machine.Stolen()
    with scratch() as folder, Sink() as sink, Collector(folder, sink.url) as collector, ceilings.BareServer() as server:
        paced(collector, 100, 1.0)
        for _ in range(rounds):
            with scratch() as empty:
                commits.append(ceilings.commit_ms(empty))
            bare.append(paced(server, 1000, 1.0))
            for rate, lasting in seconds.items():
                found[rate].append(paced(collector, rate, lasting))
    table = Table("", ("", "Requests a second", "p50 ms", "p99 ms", "p99 / a commit's p50", "CPU us a request"))
    for name, rate, runs in [("bare aiohttp", 1000, bare), *(("Tillpost", *each) for each in found.items())]:
        p50, p99, cpu = (Figure.of(column) for column in zip(*runs, strict=True))
        ratio = Figure.of([one.p99_ms / commit for one, commit in zip(runs, commits, strict=True)])
        table.rows.append((name, rate, p50, p99, ratio, cpu))
    result = Result("How long does a caller wait until its record is on the disk?", [table])
    result.goals.append(Goal("p99 at 1000 requests/s / a single-row commit's p50", ratio.median, 20))
    lines = [
        (name, [(rate, Figure.of([getattr(one, column) for one in runs]).median) for rate, runs in found.items()])
        for name, column in (("p50", "p50_ms"), ("p99", "p99_ms"))
    ]
    result.plots.append(
        Plot("latency", "From due to durable", "ms", lines=lines, x_label="requests a second", log_x=True)
    )
    result.notes.append(
        f"A commit of a single row, p50: {Figure.of(commits, 'ms')}. At 10 a second p99 is about the slowest of a run."
    )
    result.notes.append(f"CPU time that the machine's host gave to others meanwhile (steal): {stolen}.")
    return result


if __name__ == "__main__":
    report.main(run, __doc__)
