"""Runs on a small disk of its own (`small_disk`): ``full_disk.py SCENARIO FOLDER`` fails when a promise is broken.

Each promise is looked at from outside: what ingest answers, what the upstream got and how often, what the
ledger says; and that the disk really had no byte left.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from collector import Collector
from collector.demo.processes import Sidecar
from collector.reserve import Reserve
from collector.testing import FakeUpstream
from tests.end_to_end.clients import adds_up, event, get, post
from tests.faults.small_disk import Filler, free_bytes, thief, until

LONG = os.environ.get("TILLPOST_LONG") == "1"
MIB = 1 << 20
SIZE = "8MiB"
IMPATIENT = {
    "delivery.backoff_base": "20ms",
    "delivery.backoff_max": "200ms",
    "batch.linger": "0s",
    "batch.max_records": "50",
    "shutdown.grace": "2s",
    "buffer.max_size": SIZE,
}


class Shop:
    """A collector in this process, the upstream it sends to, and what was acknowledged."""

    def __init__(self, disk: Path, fake: FakeUpstream) -> None:
        self.disk, self.fake = disk, fake
        self.acknowledged: list[str] = []
        self.serial = 0
        self.open()

    def open(self) -> None:
        config: dict[str, Any] = {}
        for key, value in IMPATIENT.items():
            section, _, name = key.partition(".")
            config.setdefault(section, {})[name] = int(value) if value.isdigit() else value
        config["upstream"] = {"allow_http": True}
        self.collector = Collector(self.disk / "t.db", upstream=self.fake.url, api_key="k", config=config)
        self.collector.start()

    def offer(self, count: int = 20, pad: int = 2000) -> tuple[int, Any]:
        """Post some records once: the answer's status and headers."""
        self.serial += 1
        records = [event(f"{self.serial}-{i}", i % 3, note="x" * pad) for i in range(count)]
        status, headers, _ = self.collector.receive(
            "/v4/events/batch", json.dumps(records).encode(), {"Content-Type": "application/json"}, 20
        )
        if status == 202:
            self.acknowledged += [record["eventSalt"] for record in records]
        return status, headers

    def accept(self, requests: int, **size: int) -> None:
        for _ in range(requests):
            status, _ = self.offer(**size)
            assert status == 202, status

    def refused(self) -> None:
        status, headers = self.offer(1, 10)
        assert status == 507, status
        assert int(headers["Retry-After"]) > 0

    def accepted_again(self, within_s: float = 5.0) -> float:
        return until("records to be accepted again", lambda: self.offer(1, 10)[0] == 202, within_s)

    @property
    def unwritten(self) -> int:
        """Bytes by which the log would lengthen the database file."""
        parts = self.collector._parts
        assert parts is not None
        (pages,) = self.collector._on_loop(
            lambda parts: parts.buffer.run(lambda work: work.conn.execute("PRAGMA page_count").fetchone())
        )
        return int(pages) * 4096 - (self.disk / "t.db").stat().st_size

    def drained(self) -> None:
        """Everything acknowledged is delivered, and every request was sent once."""
        until("everything to be delivered", lambda: self.collector.status()["ledger"]["pending"] == 0, 30)
        self.check()

    def check(self) -> None:
        ledger = self.collector.status()["ledger"]
        assert adds_up(ledger), ledger
        assert ledger["delivered"] == len(self.acknowledged), ledger
        stored = [record["eventSalt"] for record in self.fake.stored]
        assert sorted(stored) == sorted(self.acknowledged)
        assert self.fake.overwritten == 0, "a batch was sent twice"
        assert self.fake.violations == []


def delivery_stops(fake: FakeUpstream) -> None:
    fake.fault(503, times=None)


def backlog(shop: Shop, wanted: int = MIB // 4) -> None:
    """Records that wait, some of them in the log alone."""
    delivery_stops(shop.fake)
    shop.accept(20)
    for _ in range(60):
        if shop.unwritten > wanted:
            break
        shop.accept(1)
    assert shop.unwritten > wanted, "the log was checkpointed: nothing to prove"


def while_running(disk: Path, fake: FakeUpstream) -> None:
    """(a) Somebody takes the last byte while records are in the log alone."""
    shop, filler = Shop(disk, fake), Filler(disk)
    backlog(shop)
    filler.fill()
    shop.refused()
    fake.clear_faults()
    shop.drained()
    shop.refused()
    filler.free()
    shop.accepted_again()
    shop.drained()
    shop.collector.close()


def after_a_clean_stop(disk: Path, fake: FakeUpstream) -> None:
    """(b) The stop deleted the log; the next start finds no byte free, and somebody who takes whatever becomes so."""
    shop = Shop(disk, fake)
    backlog(shop, 0)
    shop.collector.close()
    assert not (disk / "t.db-wal").exists()
    with thief(disk):
        until("the disk to be full", lambda: free_bytes(disk) == 0)
        shop.open()
        shop.refused()
        fake.clear_faults()
        shop.drained()
    shop.accepted_again()
    shop.drained()
    shop.collector.close()


def after_a_kill(disk: Path, fake: FakeUpstream) -> None:
    """(c) Killed with records in the log alone; the next start finds no byte free."""

    class OnDisk(Sidecar):
        def start(self) -> None:
            self.arguments[1] = str(disk / "t.db")
            super().start()

    delivery_stops(fake)
    logs = disk / "logs"
    logs.mkdir()
    sidecar = OnDisk(logs, fake.url, IMPATIENT, "k")
    acknowledged = []
    for serial in range(40):
        records = [event(f"{serial}-{i}", i % 3, note="x" * 2000) for i in range(20)]
        assert post(sidecar.address, "/v4/events/batch", records)[0] == 202
        acknowledged += [record["eventSalt"] for record in records]
    sidecar.kill()
    filler = Filler(disk)
    filler.fill()
    sidecar.start()
    status, headers, _ = post(sidecar.address, "/v4/events/batch", [event("no")])
    assert (status, int(headers["retry-after"]) > 0) == (507, True)
    fake.clear_faults()
    until("everything to be delivered", lambda: sidecar.status()["ledger"]["pending"] == 0)
    filler.free()
    until("records to be accepted", lambda: post(sidecar.address, "/v4/events/batch", [event("yes")])[0] == 202, 5)
    until("everything to be delivered", lambda: sidecar.status()["ledger"]["pending"] == 0)
    ledger = get(sidecar.address, "/status.json")["ledger"]
    assert sidecar.close() == 0
    assert adds_up(ledger)
    assert sorted(record["eventSalt"] for record in fake.stored) == sorted([*acknowledged, "yes"])
    assert fake.overwritten == 0


def with_a_thief(disk: Path, fake: FakeUpstream) -> None:
    """(d) As (a), and another process takes every byte that we free, faster than we can use it."""
    shop, filler = Shop(disk, fake), Filler(disk)
    backlog(shop)
    let_go, stolen = Reserve._let_go, []

    def let_go_to_the_thief(reserve: Reserve) -> None:
        let_go(reserve)
        stolen.append(free_bytes(disk))
        filler.fill()

    Reserve._let_go = let_go_to_the_thief  # type: ignore[method-assign]  # the race, always lost
    with thief(disk):
        until("the disk to be full", lambda: free_bytes(disk) == 0)
        shop.refused()
        fake.clear_faults()
        shop.drained()
        until("a refusal", lambda: shop.offer(1, 10)[0] == 507)  # ext4 hands out what was freed a little later
        assert stolen, "the ballast was not needed: nothing to prove"
    filler.free()
    shop.accepted_again()
    shop.drained()
    shop.collector.close()


def cycles(disk: Path, fake: FakeUpstream) -> None:
    """Full and free again, time after time, under load."""
    count = 100 if LONG else 25
    shop, filler = Shop(disk, fake), Filler(disk)
    slowest = 0.0
    stop = threading.Event()
    answers = set()

    def load() -> None:
        other = 0
        while not stop.is_set():
            other += 1
            records = [event(f"load-{other}-{i}", i % 3, note="x" * 500) for i in range(10)]
            status, _, _ = shop.collector.receive(
                "/v4/events/batch", json.dumps(records).encode(), {"Content-Type": "application/json"}, 20
            )
            answers.add(status)
            if status == 202:
                shop.acknowledged.extend(record["eventSalt"] for record in records)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for _ in range(count):
            filler.fill()
            until("a refusal", lambda: shop.offer(1, 10)[0] == 507, 5)
            filler.free()
            slowest = max(slowest, shop.accepted_again())
    finally:
        stop.set()
        thread.join(30)
    shop.drained()
    shop.collector.close()
    assert answers == {202, 507}, answers
    print(f"{count} cycles, {len(shop.acknowledged)} records, accepted again within {slowest * 1000:.0f} ms")


def no_inodes(disk: Path, fake: FakeUpstream) -> None:
    """Nobody can make a file any more: nothing changes, and neither does a restart."""
    shop = Shop(disk, fake)
    delivery_stops(fake)
    shop.accept(5)
    made = []
    while True:
        try:
            (disk / f"inode{len(made)}").touch(exist_ok=False)
        except OSError:
            break
        made.append(disk / f"inode{len(made)}")
    shop.accept(5)
    shop.collector.close()
    while True:  # the stop deleted the log and the socket
        try:
            (disk / f"inode{len(made)}").touch(exist_ok=False)
        except OSError:
            break
        made.append(disk / f"inode{len(made)}")
    shop.open()
    fake.clear_faults()
    shop.drained()
    for path in made:
        path.unlink()
    shop.accepted_again()
    shop.drained()
    shop.collector.close()


SCENARIOS: dict[str, Callable[[Path, FakeUpstream], None]] = {
    each.__name__: each for each in (while_running, after_a_clean_stop, after_a_kill, with_a_thief, cycles, no_inodes)
}

if __name__ == "__main__":
    with FakeUpstream(api_key="k") as upstream:
        SCENARIOS[sys.argv[1]](Path(sys.argv[2]), upstream)
