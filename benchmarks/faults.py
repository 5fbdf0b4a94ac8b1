"""What arrives when things go wrong, and who is told what is lost?

    python -m benchmarks.faults [--quick]

All libraries at their defaults meet the same fault at the same time, each in a process of its own:
SIGKILL while the sink is down; an outage of 30 s; one event with a NaN among 300. Tillpost's sidecar and syslog-ng
are killed together with the application.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import lab, report
from benchmarks.lab import begin_apart, scratch, until
from benchmarks.peers.catalogue import PEERS, Peer
from benchmarks.peers.sink import STRICT, Sink
from benchmarks.report import Result, Table

KILLED, AFTER_S = 1_000, 5.0
"""Events before SIGKILL; how long after the last call the patient one comes."""
OUTAGE_S, PACE_S = 30.0, 0.05
SETTLE_S = 1.0
"""Between an application's first event and the ones that count."""
AMONG = 300
PATIENCE_S = 40.0
"""How long an event may take to arrive once nothing is in its way."""
EACH: Final = 4_000
"""Numbers of events for each library: so they can share a sink."""


# -- in the process of the application --------------------------------------------------------------


class Warnings(logging.Handler):
    """Counts what is logged as a warning or worse."""

    def __init__(self, signals: Counter[str]) -> None:
        super().__init__(logging.WARNING)
        self.signals = signals

    def emit(self, _record: logging.LogRecord) -> None:
        self.signals["log lines"] += 1


@dataclass
class Order:
    """What the application is to do."""

    name: str
    target: str
    folder: Path
    numbers: range
    bad: int | None = None
    pace_s: float = 0.0
    dies_after_s: float | None = None
    """SIGKILL so long after the last call; None to flush and live until `end`."""


def use(order: Order, confirmed: Any, opened: Any, go: Any, tracked: Any, end: Any) -> dict[str, int]:
    """Open, wait for `go`, track, and end as ordered. Returns how, and how often, the library told of trouble."""
    session = PEERS[order.name].open(order.target, order.folder)
    logging.getLogger().addHandler(Warnings(session.signals))

    def attempt(call: Any, *arguments: int) -> None:
        try:
            call(*arguments)
        except Exception as error:
            session.signals[f"{type(error).__name__} raised"] += 1

    attempt(session.track, order.numbers.stop)  # an application that has been running
    time.sleep(SETTLE_S)
    earlier = session.confirmed()
    opened.set()
    go.wait()
    for number in order.numbers:
        attempt(session.bad if number == order.bad else session.track, number)
        if order.pace_s:  # even a sleep of nothing would let other threads come first
            time.sleep(order.pace_s)
    tracked.set()
    if order.dies_after_s is not None:
        time.sleep(order.dies_after_s)
        confirmed.value = session.confirmed() - earlier
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=attempt, args=(session.flush,), daemon=True).start()
    end.wait()
    return dict(session.signals)


# -- around it --------------------------------------------------------------------------------------


class Site:
    """A library in use: its process, its files, the program beside it, the numbers of its events."""

    def __init__(self, peer: Peer, place: int, folder: Path, sink: Sink) -> None:
        self.peer, self.sink = peer, sink
        self.first = place * EACH
        self.folder = folder / str(place)
        self.folder.mkdir()
        self.program = peer.beside(self.folder, sink.url) if peer.beside else None
        self.confirmed = lab._spawn.RawValue("q")

    def open(self, numbers: range, bad: int | None = None, **further: Any) -> None:
        """Start the program beside it and the application, which tracks once it is told to."""
        if self.program:
            self.program.start()
        self.opened, self.go, self.tracked, self.end = (lab._spawn.Event() for _ in range(4))
        target = f"http://{self.program.address}" if self.program else self.sink.url
        order = Order(self.peer.name, target, self.folder, self._own(numbers),
                      None if bad is None else self.first + bad, **further)  # fmt: skip
        events = self.confirmed, self.opened, self.go, self.tracked, self.end
        self._process, self._results = begin_apart(use, order, *events)

    def _own(self, numbers: range) -> range:
        return range(self.first + numbers.start, self.first + numbers.stop)

    def died(self) -> int:
        """Once the application was killed, kill what is beside it too. Returns how many events were confirmed."""
        self._process.join()
        if self.program:
            self.program.kill()
        return int(self.confirmed.value)

    def told(self) -> str:
        """How the library told its caller of trouble, once the application has been asked to end."""
        self.end.set()
        signals, trouble = self._results.recv() if self._results.poll(10) else ({}, "it no longer answers")
        return trouble or ", ".join(f"{how}: {count}" for how, count in signals.items()) or "nothing"

    def close(self) -> None:
        self._process.kill()
        if self.program:
            self.program.kill()

    def arrived(self, numbers: range) -> tuple[int, int]:
        """How many of the events, and how many further copies."""
        return self.sink.counts.of(self._own(numbers))


def begin(sites: Sequence[Site]) -> None:
    for site in sites:
        until(site.opened.is_set, f"{site.peer.name} is open")
    for site in sites:
        site.go.set()


def wait_for(sites: Sequence[Site], numbers: range, wanted: int, seconds: float) -> None:
    """Until so many of these arrived from everybody, or as long as that."""
    for site in sites:
        until(site.tracked.is_set, f"{site.peer.name} has tracked")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(site.arrived(numbers)[0] < wanted for site in sites):
        time.sleep(0.1)


@contextlib.contextmanager
def everybody(sink: Sink, times: int = 1) -> Iterator[list[Site]]:
    peers = sorted((peer for peer in PEERS.values() if not peer.missing), key=lambda peer: not peer.ours) * times
    with scratch() as folder:
        sites = [Site(peer, place, folder, sink) for place, peer in enumerate(peers)]
        try:
            yield sites
        finally:
            for site in sites:
                site.close()


def killed() -> Table:
    """SIGKILL with the sink down, at once and later; then the application starts again with the sink up."""
    sink, numbers = Sink(), range(KILLED)
    with everybody(sink, 2) as sites:
        half = len(sites) // 2
        for place, site in enumerate(sites):
            site.open(numbers, dies_after_s=AFTER_S if place >= half else 0.0)
        for site in sites[:half]:  # one by one: what a library does in a moment must not depend on the others
            begin([site])
            site.died()
        begin(sites[half:])
        confirmed = [site.died() for site in sites]
        with sink:
            for site in sites:
                site.open(range(KILLED + 1, KILLED + 2))
            begin(sites)
            wait_for(sites, numbers, KILLED, PATIENCE_S / 2)
            found = [site.arrived(numbers) for site in sites]
    table = Table(
        f"SIGKILL with the sink down, {KILLED:,} events; then a start with the sink up",
        ("Library", "Keeps events in", "Killed at once: confirmed", "arrived", "copies",
         f"Killed {AFTER_S:.0f} s later: confirmed", "arrived", "copies", "A returned call means"),
    )  # fmt: skip
    for place in range(half):
        peer = sites[place].peer
        table.rows.append((peer.label, peer.keeps, confirmed[place], *found[place], confirmed[half + place],
                           *found[half + place], peer.promise))  # fmt: skip
    return table


def outage(seconds: float) -> Table:
    """A sink that goes away and comes back while events are tracked all the time."""
    sink, numbers = Sink(), range(int((seconds + 3) / PACE_S))
    with everybody(sink) as sites:
        with sink:
            for site in sites:
                site.open(numbers, pace_s=PACE_S)
            begin(sites)
            time.sleep(1)
        time.sleep(seconds)
        with sink:
            wait_for(sites, numbers, len(numbers), PATIENCE_S)
            found = [site.arrived(numbers) for site in sites]
            told = [site.told() for site in sites]
    table = Table(
        f"The sink is away for {seconds:.0f} s, {1 / PACE_S:.0f} events a second all the time: {len(numbers)} events",
        (
            "Library",
            "Keeps events in",
            "Arrived",
            f"Not there {PATIENCE_S:.0f} s later",
            "Copies",
            "How the application was told",
        ),
    )
    for site, (arrived, copies), what in zip(sites, found, told, strict=True):
        table.rows.append((site.peer.label, site.peer.keeps, arrived, len(numbers) - arrived, copies, what))
    return table


def bad_event() -> Table:
    """A value that JSON cannot say, in one event of many; the sink refuses a request that is not JSON."""
    sink, numbers, bad = Sink(), range(AMONG), AMONG // 2
    sink.counts.mode = STRICT
    with everybody(sink) as sites, sink:
        for site in sites:
            site.open(numbers, bad=bad)
        begin(sites)
        wait_for(sites, numbers, AMONG - 1, PATIENCE_S)
        found = [(site.arrived(numbers), site.arrived(range(bad, bad + 1))[0]) for site in sites]
        told = [site.told() for site in sites]
    table = Table(
        f"One event with a NaN among {AMONG}",
        (
            "Library",
            f"Others not there {PATIENCE_S:.0f} s later",
            "Copies",
            "The bad one",
            "How the application was told",
        ),
    )
    for site, ((arrived, copies), itself), what in zip(sites, found, told, strict=True):
        lost = AMONG - 1 - (arrived - itself)
        table.rows.append((site.peer.label, lost, copies, "arrived" if itself else "did not arrive", what))
    return table


def run(quick: bool) -> Result:
    result = Result("What arrives when things go wrong?")
    with ThreadPoolExecutor() as together:  # they mostly wait
        faults = (
            together.submit(killed),
            together.submit(outage, 5.0 if quick else OUTAGE_S),
            together.submit(bad_event),
        )
        result.tables += [fault.result() for fault in faults]
    result.notes += [f"{peer.name}: {peer.missing}" for peer in PEERS.values() if peer.missing]
    result.notes += [
        "Confirmed: events the library had told its caller it will not lose. Single runs; none of it is a speed.",
        "Not there is not always lost: rudder-sdk-python and amplitude-analytics may still be waiting to try again.",
        "snowplow-tracker sends JSON within JSON, so a bad value only shows where the inner one is read; "
        "python-logstash-async sends lines over TCP, where nobody can refuse one.",
    ]
    return result


if __name__ == "__main__":
    report.main(run, __doc__)
