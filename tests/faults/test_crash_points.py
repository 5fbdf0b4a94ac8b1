"""The process dies at every named point in turn: nothing acknowledged is lost, nothing altered, nothing counted twice.

The names come from `collector.crashpoints`, so none is forgotten; random kills under load are
in tests/end_to_end/test_kills.py, kills between any two writes in test_power_cuts.py.
"""

import http.client
import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar, get_args

import pytest

from collector.admin import Admin, AdminError, reach
from collector.crashpoints import Point
from collector.demo.processes import DemoError, Sidecar, wait_for
from collector.settings import load
from collector.testing import FakeUpstream
from tests.end_to_end.clients import CUSTOM, EMAIL, UUID, adds_up, event, post
from tracker.time import SystemClock
from tracker.wire import CLOCK_HEADER, ClockHeader

T = TypeVar("T")
KILLED = 137
UPSTREAM_AHEAD_S = 600
SETTINGS = {
    "delivery.backoff_base": "10ms",
    "delivery.backoff_max": "50ms",
    "batch.linger": "10ms",
    "batch.max_records": "10",
}


class Mortal(Sidecar):
    """A sidecar that dies at one crash point after the other, and a till that tries again until it is done."""

    def __init__(self, folder: Path, upstream: str, points: Sequence[str], environment: pytest.MonkeyPatch) -> None:
        self.points = list(points)
        """Those still to come."""
        self.environment = environment
        self.acknowledged: dict[str, dict] = {}
        self._arm()
        super().__init__(folder, upstream, SETTINGS, "k")

    def _arm(self) -> None:
        if self.points:
            self.environment.setenv("CRASH_AT", self.points[0])
        else:
            self.environment.delenv("CRASH_AT")

    def start(self) -> None:
        try:
            super().start()
        except DemoError:
            self.resurrect()

    def resurrect(self) -> None:
        """It does not answer: so it died at the crash point, and is started again with the next one before it."""
        code = self.process.wait(20)
        assert code == KILLED, f"it ended with {code} on the way to {self.points[:1]}"
        del self.points[0]
        self._arm()
        self.start()

    def insist(self, action: Callable[[], T]) -> T:
        while True:
            try:
                return action()
            except (OSError, http.client.HTTPException, AdminError, DemoError):
                self.resurrect()

    def send(self, *records: dict, headers: dict[str, str] | None = None) -> None:
        status, _, _ = self.insist(lambda: post(self.address, "/v4/events/batch", list(records), headers))
        assert status == 202
        self.acknowledged.update((record["eventSalt"], record) for record in records)

    def until(self, **counts: int) -> None:
        """Wait until the ledger shows these counts."""
        wait_for(f"{counts}", lambda: counts.items() <= self.insist(self.status)["ledger"].items(), timeout=30)

    def admin(self) -> Admin:
        return reach(load(flags=[("buffer.path", "--buffer", str(self.buffer))], default_file=None, environ={}))


def iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def a_day_in_the_shop(sidecar: Mortal, fake: FakeUpstream) -> None:
    """Everything that comes by a crash point, but for a damaged file and a stop."""
    # several lanes; stamped by a till whose clock is ten minutes slow, as ours is
    sidecar.send(*(event(f"e{i}", i % 3) for i in range(30)))
    clock, stamped = SystemClock(), event("stamped")
    stamped["time"] = iso(datetime.now(UTC))
    header = ClockHeader(clock.boot_id(), clock.wall_ms() - clock.boot_ms(), clock.boot_ms()).encode()
    sidecar.send(stamped, headers={CLOCK_HEADER: header})

    # one waits aside for its time, and is forgotten
    tomorrow = event("ahead") | {"client": {"customId": "leaver"}}
    tomorrow["time"] = iso(datetime.now(UTC) + timedelta(seconds=UPSTREAM_AHEAD_S + 3600))
    sidecar.send(tomorrow)
    sidecar.until(pending=1)
    sidecar.insist(lambda: sidecar.admin().forget({"client": {"customId": "leaver"}}))
    sidecar.until(pending=0, discarded=1)

    # two are refused: one comes again in another form, one is retried
    bad = fake.fault("reject", salt=["bad1", "bad2"])
    sidecar.send(*(event(salt, EMAIL) for salt in ("good1", "bad1", "good2", "bad2")))
    sidecar.until(dead=2)
    bad.cleared = True
    sidecar.send(event("bad1", EMAIL, note="better"))
    sidecar.until(superseded=1)
    sidecar.insist(lambda: sidecar.admin().retry(None, force=False))
    sidecar.until(dead=0, pending=0)


def a_damaged_file(sidecar: Mortal, fake: FakeUpstream) -> None:
    """A backlog, and then a file whose header is damaged while nobody runs."""
    outage = fake.fault(503, times=None)
    sidecar.send(*(event(f"d{i}", (EMAIL, UUID, CUSTOM)[i % 3]) for i in range(60)))
    sidecar.kill()
    with closing(sqlite3.connect(sidecar.buffer)) as log:
        log.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with sidecar.buffer.open("r+b") as file:
        file.seek(16)
        file.write(b"\xff\xff")
    sidecar.start()
    outage.cleared = True
    sidecar.until(pending=0)


def a_stop(sidecar: Mortal, fake: FakeUpstream) -> None:
    """It is asked to stop while it holds records."""
    outage = fake.fault(503, times=None)
    sidecar.send(event("left"))
    sidecar.process.terminate()
    sidecar.resurrect()
    outage.cleared = True
    sidecar.until(pending=0)


DAMAGE = tuple(point for point in get_args(Point) if point.startswith(("quarantine", "salvag")))
STOP = ("stopping",)
DAY = tuple(point for point in get_args(Point) if point not in DAMAGE + STOP)
"""In the order in which a day comes by them. A new point is looked for here."""


@pytest.mark.parametrize(("work", "points"), [(a_day_in_the_shop, DAY), (a_damaged_file, DAMAGE), (a_stop, STOP)])
def test_a_death_at_any_crash_point_loses_nothing_and_counts_nothing_twice(
    work: Callable[[Mortal, FakeUpstream], None],
    points: Sequence[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FakeUpstream(api_key="k") as fake:
        fake.fault("clock_offset", seconds=UPSTREAM_AHEAD_S)
        sidecar = Mortal(tmp_path, fake.url, points, monkeypatch)
        try:
            work(sidecar, fake)
            ledger = sidecar.status()["ledger"]
        finally:
            sidecar.kill()
        stored = {record["eventSalt"]: record for record in fake.stored}

    assert sidecar.points == [], "these were never reached"
    assert len(fake.stored) == len(stored), "something is stored twice"
    assert stored.keys() == sidecar.acknowledged.keys() - {"ahead"}
    for salt, record in stored.items():
        accepted = sidecar.acknowledged[salt]
        if salt == "stamped":
            moment = datetime.fromisoformat(record["time"]) - datetime.fromisoformat(accepted.pop("time"))
            assert abs(moment.total_seconds() - UPSTREAM_AHEAD_S) < 5, "the time we stamped was not repaired"
            del record["time"]
        assert record == json.loads(json.dumps(accepted))
    assert (fake.violations, fake.altered) == ([], 0)
    assert adds_up(ledger)
    assert ledger["lost"] == ledger["lost_at_most"] == ledger["pending"] == ledger["dead"] == 0
    assert ledger["superseded"] == ledger["discarded"] == (work is a_day_in_the_shop)
