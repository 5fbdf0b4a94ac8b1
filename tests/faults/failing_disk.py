"""Runs with a disk that fails (`fail_disk.c`): ``failing_disk.py SCENARIO FOLDER`` fails when a promise is broken."""

import errno
import http.client
import json
import mmap
import os
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import collector.app
from collector import Collector
from collector.testing import FakeUpstream
from tests.end_to_end.clients import adds_up, event
from tests.faults.small_disk import until

WRITE, SYNC, AFTER, TIMES, FAILED, SLOW_US, SYNCS = range(7)
FOR_EVER = 1 << 30
CONFIG: dict[str, dict[str, Any]] = {
    "batch": {"linger": 0, "max_records": 10},
    "clock": {"margin": 0},
    "delivery": {"backoff_base": "10ms", "backoff_max": "50ms"},
    "shutdown": {"grace": "2s"},
    "upstream": {"allow_http": True},
    "buffer": {"max_size": "8MiB"},
}


class Switch:
    """What the disk does from now on."""

    def __init__(self) -> None:
        with open(os.environ["FAIL_SWITCH"], "r+b") as file:
            self._cells = mmap.mmap(file.fileno(), 32)

    def __getitem__(self, cell: int) -> int:
        return int(struct.unpack_from("i", self._cells, 4 * cell)[0])

    def __setitem__(self, cell: int, value: int) -> None:
        struct.pack_into("i", self._cells, 4 * cell, value)

    def fail(self, what: int, error: int = errno.EIO, after: int = 0, times: int = 1) -> None:
        self[AFTER], self[TIMES], self[FAILED] = after, times, 0
        self[what] = error

    def mend(self) -> None:
        self[WRITE] = self[SYNC] = self[SLOW_US] = 0


class Shop:
    """A collector in this process, the upstream it sends to, and what was acknowledged."""

    def __init__(self, path: Path, fake: FakeUpstream, config: dict[str, Any] | None = None) -> None:
        self.path, self.fake, self.config = path, fake, CONFIG | (config or {})
        self.acknowledged: list[str] = []
        self.serial = 0
        self.open()

    def open(self) -> None:
        self.collector = Collector(self.path, upstream=self.fake.url, api_key="k", config=self.config)
        self.collector.start()

    def make(self, count: int = 10) -> list[dict[str, Any]]:
        self.serial += 1
        return [event(f"{self.path.stem}-{self.serial}-{i}", i % 3) for i in range(count)]

    def offer(self, records: list[dict[str, Any]]) -> int:
        """Post them once; the answer's status."""
        body, headers = json.dumps(records).encode(), {"Content-Type": "application/json"}
        status, _, _ = self.collector.receive("/v4/events/batch", body, headers, 20)
        if status == 202:
            self.acknowledged += [record["eventSalt"] for record in records]
        return status

    def accept(self, count: int = 10) -> None:
        """Post some until they are acknowledged, as a client does: the same ones again after a 503."""
        records = self.make(count)
        until("records to be accepted", lambda: self.offer(records) == 202)

    @property
    def ledger(self) -> dict[str, int]:
        ledger: dict[str, int] = self.collector.status()["ledger"]
        assert adds_up(ledger), ledger
        return ledger

    def drained(self) -> None:
        """What was acknowledged arrived, unaltered; what was not, once at most."""
        until("everything to be delivered", lambda: self.ledger["pending"] == 0)
        stored = [record["eventSalt"] for record in self.fake.stored]
        assert len(stored) == len(set(stored))
        assert set(self.acknowledged) <= set(stored), "an acknowledged record is missing"
        assert self.fake.altered == 0
        assert self.fake.violations == []


def one_fails(disk: Path, fake: FakeUpstream, switch: Switch) -> None:
    """Each of the first writes and syncs after a start fails once, wherever it falls: a record, a settle, a mark."""
    hits = 0
    for what in (WRITE, SYNC):
        for after in range(int(os.environ.get("TILLPOST_CALLS", "12"))):
            shop = Shop(disk / f"{what}-{after}.db", fake)
            switch.fail(what, after=after)
            for _ in range(3):
                shop.accept()
            until("all of it to be settled", lambda shop=shop: shop.ledger["pending"] == 0)  # type: ignore[misc]
            hits += switch[FAILED]
            switch.mend()
            shop.drained()
            before = shop.ledger
            shop.collector.close()
            shop.open()
            assert shop.ledger == before, "what the ledger said was not on the disk"
            assert before["lost"] == 0
            assert not shop.path.with_name(shop.path.name + ".quarantine").exists()
            shop.collector.close()
    assert hits > 12, f"only {hits} calls failed: nothing is shown"


def all_fail(disk: Path, fake: FakeUpstream, switch: Switch) -> None:
    """A disk that broke for good acknowledges nothing and says so; mended, all goes on."""
    collector.app.REVIVE_EVERY_S = 0.1  # type: ignore[misc]
    for what, error in ((SYNC, errno.EIO), (WRITE, errno.EIO), (WRITE, errno.EROFS)):
        shop = Shop(disk / f"{what}-{error}.db", fake)
        shop.accept()
        shop.drained()
        switch.fail(what, error, times=FOR_EVER)
        records = shop.make()
        for _ in range(5):
            assert shop.offer(records) == 503
        until("the collector to say that it is not well", lambda shop=shop: not is_alive(shop.collector))  # type: ignore[misc]
        assert switch[FAILED] > 3
        switch.mend()
        until("the collector to be well again", lambda shop=shop: is_alive(shop.collector))  # type: ignore[misc]
        until("records to be accepted", lambda shop=shop, records=records: shop.offer(records) == 202)  # type: ignore[misc]
        shop.drained()
        shop.collector.close()


def nothing_can_be_noted(disk: Path, fake: FakeUpstream, switch: Switch) -> None:
    """What arrived cannot be noted: it is not sent again and again, nor is anything else."""
    collector.app.REVIVE_EVERY_S = 0.1  # type: ignore[misc]
    shop = Shop(disk / "t.db", fake)
    fake.fault(503, times=None)
    for _ in range(20):
        shop.accept(30)
    switch.fail(WRITE, times=FOR_EVER)
    before = fake.report()["stored"]
    fake.clear_faults()
    until("some of it to arrive", lambda: fake.report()["stored"] > before)
    failed = switch[FAILED]
    until("the notes to fail again and again", lambda: switch[FAILED] > failed + 50)
    # three lanes of twenty batches each: a batch a lane is in flight, and few more before the buffer is given up
    stored = fake.report()["stored"]
    assert stored - before <= 3 * 4 * 10, f"{stored} records were sent although nothing could be noted"
    switch.mend()
    shop.drained()
    assert fake.overwritten <= 3 * 10, f"{fake.overwritten} records were sent twice"
    shop.collector.close()


def slow(disk: Path, fake: FakeUpstream, switch: Switch) -> None:
    """A card that takes its time: those who wait share one sync, and health is answered meanwhile."""
    fake.fault(503, times=None)
    shop = Shop(disk / "t.db", fake, {"ingest": {"listen": ["127.0.0.1:0"]}})
    address = next(each for each in shop.collector.status()["listening"] if each.startswith("127."))
    switch[SLOW_US] = 300_000
    syncs = switch[SYNCS]
    threads = [threading.Thread(target=shop.accept, args=(5,)) for _ in range(40)]
    for thread in threads:
        thread.start()
    answers = 0
    while any(thread.is_alive() for thread in threads):
        assert is_live(address)
        answers += 1
    assert switch[SYNCS] - syncs <= 20, f"{switch[SYNCS] - syncs} syncs for 40 requests"
    assert answers > 4, "health was not answered while the disk was busy"
    assert len(shop.acknowledged) == 200
    switch.mend()
    fake.clear_faults()
    shop.drained()
    shop.collector.close()


def is_live(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("GET", "/livez")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status == 200


def is_alive(running: Collector) -> bool:
    status: dict[str, Any] = running.status()
    return status["state"] != "failed"


SCENARIOS: dict[str, Callable[[Path, FakeUpstream, Switch], None]] = {
    each.__name__: each for each in (one_fails, all_fail, nothing_can_be_noted, slow)
}

if __name__ == "__main__":
    with FakeUpstream(api_key="k") as upstream:
        SCENARIOS[sys.argv[1]](Path(sys.argv[2]), upstream, Switch())
