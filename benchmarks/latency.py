"""How long does a caller wait until its record is on the disk?

    python -m benchmarks.latency [--quick]

Open loop: requests of one record are due at a fixed pace, whether or not earlier ones are answered. A request's time
counts from when it is sent, or from when it was due if no connection is free; how late the caller itself is, which
sleeps between requests on the same two cores, stands apart. Meanwhile the collector delivers what it took to a sink.
Beside it, in the same run, what the disk takes for one commit of a single row, and how long a bare server lets the
same caller wait. Where the machine's host takes the processor away for milliseconds, tails are the host's: rounds in
which it does not are looked for, and those in which it did least are judged, whatever they show.
"""

import gc
import select
import socket
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks import ceilings, machine, report
from benchmarks.lab import Collector, Sink, _spawn, bodies, cpu_s, request_of, scratch
from benchmarks.report import Figure, Goal, Plot, Result, Table

CONNECTIONS = 64
"""Kept open; when all are busy a request waits, and its time goes on."""
SECONDS = 2.0
"""Of a round: short, because a quiet host seldom stays so for long."""
DISTURBED = 0.002
"""A share of the processors that the host gives to others: with more, a hundredth of the requests may meet it."""
ENOUGH = 5
"""Rounds that make a median. When as many were undisturbed, no more are looked for."""


# -- a process that posts when it is time ---------------------------------------------------------


def _pace(address: str, load: Sequence[bytes], rate: float, out: Any) -> None:
    """Plain sockets and `select`, which sleeps microseconds: a caller that is busy itself would be what is measured."""
    host, _, port = address.rpartition(":")
    requests = [request_of(address, body) for body in load]
    free = [socket.create_connection((host, int(port))) for _ in range(CONNECTIONS)]
    for connection in free:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    asked: dict[socket.socket, float] = {}
    answers = dict.fromkeys(free, b"")
    took: list[float] = []
    late: list[float] = []
    gc.disable()
    out.send(None)
    begun, waits = time.perf_counter() + 0.1, False
    while len(took) < len(requests):
        now = time.perf_counter()
        while (sent := len(took) + len(asked)) < len(requests) and (due := begun + sent / rate) <= now and free:
            connection = free.pop()
            connection.sendall(requests[sent])
            asked[connection] = due if waits else now
            late.append(now - due)
        waits = sent < len(requests) and due <= now
        pause = due - time.perf_counter() if sent < len(requests) and not waits else None
        readable = select.select(list(asked), [], [], None if pause is None else max(0.0, pause))[0]
        now = time.perf_counter()
        for connection in readable:
            answers[connection] += connection.recv(65536)
            if b"\r\n\r\n" in answers[connection]:
                assert b" 202 " in answers[connection][:20], answers[connection]
                answers[connection] = b""
                took.append(now - asked.pop(connection))
                free.append(connection)
    out.send((took, late))


class Paced(NamedTuple):
    p50_ms: float
    p99_ms: float
    cpu_us: float
    late_ms: float
    """How late the caller was itself, p99."""


def paced(server: Collector | ceilings.BareServer, rate: int, seconds: float) -> Paced:
    """Requests of one record at this rate, for so long."""
    load = bodies(round(rate * seconds), 1, seed=time.monotonic_ns())
    inlet, outlet = _spawn.Pipe(duplex=False)
    process = _spawn.Process(target=_pace, args=(server.address, load, rate, outlet))
    process.start()
    outlet.close()
    inlet.recv()  # connected
    before = cpu_s(server.pid)
    took, late = inlet.recv()
    cpu = cpu_s(server.pid) - before
    process.join()
    return Paced(_percentile(took, 50), _percentile(took, 99), cpu / len(load) * 1e6, _percentile(late, 99))


def _percentile(seconds: Sequence[float], percent: int) -> float:
    """In milliseconds."""
    return statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1] * 1e3


# -- the question ---------------------------------------------------------------------------------


class Round(NamedTuple):
    commit_ms: float
    ours: Paced
    stolen: float
    """The share of the processors that the machine's host gave to others, while both were measured."""

    @property
    def ratio(self) -> float:
        return self.ours.p99_ms / self.commit_ms


def run(quick: bool) -> Result:
    rounds, most = (2, 2) if quick else (ENOUGH, 16)
    slower: dict[int, list[Paced]] = {10: [], 100: []}
    found: list[Round] = []
    bare: list[Paced] = []
    with scratch() as folder, Sink() as sink, Collector(folder, sink.url) as collector, ceilings.BareServer() as server:
        paced(collector, 100, 1.0)
        while len(found) < rounds or (len(found) < most and _undisturbed(found) < ENOUGH):
            stolen = machine.Stolen()
            with scratch() as empty:
                commit_ms = ceilings.commit_ms(empty)
            ours = paced(collector, 1000, SECONDS)
            found.append(Round(commit_ms, ours, stolen.share or 0.0))
            if len(found) <= rounds:
                bare.append(paced(server, 1000, 1.0))
                for rate, runs in slower.items():
                    runs.append(paced(collector, rate, SECONDS))
    judged = sorted(found, key=lambda each: each.stolen)[:rounds]
    return _result(found, judged, bare, slower)


def _undisturbed(found: Sequence[Round]) -> int:
    return sum(each.stolen <= DISTURBED for each in found)


def _result(
    found: Sequence[Round], judged: Sequence[Round], bare: Sequence[Paced], slower: dict[int, list[Paced]]
) -> Result:
    table = Table(
        "", ("", "Requests a second", "Rounds", "p50 ms", "p99 ms", "p99 / a commit's p50", "the caller late, p99 ms",
             "CPU us a request"),
    )  # fmt: skip
    rows: list[tuple[str, int, Sequence[Paced], Sequence[Round]]] = [
        ("bare aiohttp", 1000, bare, found),
        *(("Tillpost", rate, runs, found) for rate, runs in slower.items()),
        ("Tillpost", 1000, [each.ours for each in found], found),
        ("Tillpost, judged", 1000, [each.ours for each in judged], judged),
    ]
    for name, rate, runs, beside in rows:
        p50, p99, cpu, late = (Figure.of(column) for column in zip(*runs, strict=True))
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
    stolen = Figure.of([100 * each.stolen for each in found], "%")
    least = Figure.of([100 * each.stolen for each in judged], "%")
    result.notes += [
        f"A commit of a single row, p50: {commits}. At 10 a second p99 is about the slowest of a run.",
        f"The machine's host gave {stolen} of it to others meanwhile. Judged are the {len(judged)} rounds in which it "
        f"gave least, {least}; more were looked for until as many had at most {DISTURBED:.1%}.",
    ]
    return result


if __name__ == "__main__":
    report.main(run, __doc__)
