"""SIGKILL, again and again, under load: nothing acknowledged is lost, nothing is counted twice."""

import http.client
import itertools
import json
import random
import threading
from pathlib import Path

import pytest

from collector.demo.processes import Sidecar, wait_for
from collector.testing import FakeUpstream
from tests.end_to_end.clients import adds_up, event, post

KILLS = 32
CLIENTS = 4
PATIENT = {
    "delivery.backoff_base": "20ms",
    "delivery.backoff_max": "100ms",
    "batch.linger": "20ms",
    "batch.max_records": "60",
}


class Load:
    """Clients that post a request again until it is acknowledged, and remember what was."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.acknowledged: dict[str, dict] = {}
        self.in_flight = 0
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def _run(self, number: int) -> None:
        chance = random.Random(number)
        for serial in itertools.count():
            if self.stop.is_set():
                return
            records = [
                event(f"{number}-{serial}-{i}", chance.randrange(4), note=chance.random())
                for i in range(chance.randrange(1, 30))
            ]
            self._deliver(records)

    def _deliver(self, records: list[dict]) -> None:
        while True:
            with self.lock:
                self.in_flight += 1
            try:
                status, headers, _ = post(self.address, "/v4/events/batch", records)
            except (OSError, http.client.HTTPException):
                if self.stop.wait(0.01):  # the collector is dead; a client that gives up was never acknowledged
                    return
                continue
            finally:
                with self.lock:
                    self.in_flight -= 1
            assert status == 202
            assert headers["tillpost-accepted"] == str(len(records))
            with self.lock:
                self.acknowledged.update((record["eventSalt"], record) for record in records)
            return

    def finish(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(60)


@pytest.mark.timeout(240)
def test_thirty_random_kills_under_load_lose_nothing_acknowledged_and_count_nothing_twice(tmp_path: Path) -> None:
    chance = random.Random(20261123)
    unanswered = uncommitted = 0
    with FakeUpstream(api_key="k") as fake:
        fake.fault("delay", seconds=0.03, times=None)  # a POST takes long enough to be cut off
        sidecar = Sidecar(tmp_path, fake.url, PATIENT, "k")
        load = Load(sidecar.address)
        try:
            for _ in range(KILLS):
                wanted = len(load.acknowledged) + chance.randrange(50, 600)
                wait_for("acknowledgements", lambda wanted=wanted: len(load.acknowledged) >= wanted)
                if chance.random() < 0.8:
                    wait_for("a POST under way and a request waiting", lambda: fake.in_progress and load.in_flight)
                sidecar.process.kill()
                unanswered += fake.in_progress > 0
                uncommitted += load.in_flight > 0
                sidecar.process.wait(20)
                sidecar.start()
            load.finish()
            fake.clear_faults()
            wait_for("everything to be delivered", lambda: sidecar.status()["ledger"]["pending"] == 0)
            ledger = sidecar.status()["ledger"]
        finally:
            load.finish()
            sidecar.close()
        stored = {record["eventSalt"]: record for record in fake.stored}

    assert len(fake.stored) == len(stored), "something is stored twice"
    lost = load.acknowledged.keys() - stored.keys()
    assert not lost, f"{len(lost)} acknowledged records are not stored"
    altered = [salt for salt, record in load.acknowledged.items() if stored[salt] != json.loads(json.dumps(record))]
    assert not altered
    assert fake.violations == []
    assert fake.altered == 0
    assert adds_up(ledger)
    assert ledger["lost"] == ledger["dead"] == ledger["discarded"] == 0
    # all of that says nothing unless the kills hit where it hurts
    assert unanswered >= 10, f"only {unanswered} kills cut off a POST"
    assert uncommitted >= 10, f"only {uncommitted} kills cut off an ingest request"
    assert fake.overwritten > 0, "no POST that was cut off had reached the upstream"
