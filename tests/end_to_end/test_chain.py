"""A chain: a till's collector delivers to the head office's, which alone holds the workspace key."""

import http.client
import itertools
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from collector import Collector
from collector.demo.processes import Sidecar, wait_for
from collector.testing import FakeUpstream
from tests.end_to_end.clients import adds_up, event, post
from tracker.time import parse_ms

KILLS = 4
AHEAD_S = 3600.0
TOKEN = "till-07-token"
QUICK: dict[str, Any] = {"ingest": {"listen": ["127.0.0.1:0"]}, "shutdown": {"grace": "0s"},
                         "delivery": {"backoff_base": "10ms", "backoff_max": "50ms"}}  # fmt: skip
PATIENT = {
    "delivery.backoff_base": "20ms",
    "delivery.backoff_max": "100ms",
    "batch.linger": "20ms",
    "batch.max_records": "60",
    "clock.margin": "200ms",
    "shutdown.grace": "0s",
}


class Till:
    """An application that posts until it is acknowledged: half of its records with time and salt, half without."""

    def __init__(self, address: str) -> None:
        self.given: dict[str, dict[str, Any]] = {}
        self.stamped: dict[str, tuple[float, float]] = {}
        """When it was handed over and when acknowledged, by the machine's clock."""
        self.tried: set[str] = set()
        """Of those without a time, also the ones whose answer was lost with the collector: there once, or not."""
        self._address = address
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        chance = random.Random(7)
        for serial in itertools.count():
            if self.stop.is_set():
                return
            given = [event(f"given-{serial}-{i}", chance.randrange(4)) for i in range(chance.randrange(1, 20))]
            while not self._acknowledged(given):
                time.sleep(0.01)  # the till's collector is dead; it comes back
            self.given.update((record["eventSalt"], record) for record in given)
            salt = f"stamped-{serial}"
            self.tried.add(salt)
            stamped = event(salt)
            del stamped["time"]  # the collector gives it, so it counts once from its 202: it is not handed over twice
            begun = time.time()
            if self._acknowledged([stamped]):
                self.stamped[salt] = begun, time.time()

    def _acknowledged(self, records: list[dict[str, Any]]) -> bool:
        try:
            return post(self._address, "/v4/events/batch", records)[0] == 202
        except (OSError, http.client.HTTPException):
            return False


@pytest.mark.timeout(120)
def test_every_record_arrives_once_through_kills_of_either_and_with_the_upstreams_time(tmp_path: Path) -> None:
    chance = random.Random(20261123)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    (tmp_path / "head").mkdir()
    (tmp_path / "till").mkdir()
    switches: dict[str, Any] = {"clock_offset_s": AHEAD_S, "server_time": "milliseconds"}
    with FakeUpstream(api_key="workspace-key", **switches) as fake:
        fake.fault("delay", seconds=0.03, times=None)  # a POST takes long enough to be cut off
        head = Sidecar(tmp_path / "head", fake.url, {**PATIENT, "ingest.token_file": str(token)}, "workspace-key")
        till = Sidecar(
            tmp_path / "till", f"http://{head.address}",
            {**PATIENT, "upstream.auth": "token", "upstream.token_file": str(token)}, "",
        )  # fmt: skip
        app = Till(till.address)
        try:
            for n in range(KILLS):
                wanted = len(app.given) + chance.randrange(30, 150)
                wait_for("acknowledgements", lambda wanted=wanted: len(app.given) >= wanted)
                victim = (head, till)[n % 2]
                if victim is head:
                    wait_for("a POST to the API under way", lambda: fake.in_progress)
                victim.kill()
                victim.start()
            app.stop.set()
            app.thread.join(30)
            fake.clear_faults()
            for sidecar in (till, head):
                wait_for("everything to be delivered", lambda s=sidecar: s.status()["ledger"]["pending"] == 0)
            ledgers = [sidecar.status()["ledger"] for sidecar in (till, head)]
            offsets = [sidecar.status()["clock"]["offset_ms"] for sidecar in (till, head)]
        finally:
            app.stop.set()
            till.close()
            head.close()
        stored = {record["eventSalt"]: record for record in fake.stored}

    assert len(fake.stored) == len(stored), "something is stored twice"
    acknowledged = app.given.keys() | app.stamped.keys()
    assert acknowledged <= stored.keys() <= acknowledged | app.tried
    assert [salt for salt, record in app.given.items() if stored[salt] != record] == []
    for salt, (begun, ended) in app.stamped.items():
        at = parse_ms(stored[salt]["time"]) / 1000 - AHEAD_S
        assert begun - 1 <= at <= ended + 1, f"{salt} has a wrong time"
    assert (fake.violations, fake.altered) == ([], 0)
    for ledger in ledgers:
        assert adds_up(ledger)
        assert ledger["lost"] == ledger["dead"] == ledger["discarded"] == 0
    assert all(abs(offset - AHEAD_S * 1000) < 1000 for offset in offsets)  # the till knows it from the head office
    # all of that says nothing unless the kills hit where it hurts
    assert fake.overwritten > 0, "no POST of the head office that was cut off had reached the API"
    assert ledgers[1]["accepted"] > len(stored), "no POST of the till that was cut off had reached the head office"


def test_a_head_office_that_does_not_know_the_time_is_not_asked_for_its_own(tmp_path: Path) -> None:
    """Its Date header is its own clock, which may be wrong for years: the till waits, and takes records meanwhile."""
    with (
        Collector(tmp_path / "head.db", upstream="http://127.0.0.1:9", api_key="k", config=QUICK) as head,
        Collector(tmp_path / "till.db", upstream=head.urls[0], api_key="k", config=QUICK) as till,
    ):
        address = till.urls[0].removeprefix("http://")
        assert post(address, "/v4/events/batch", [event("s-1")])[0] == 202
        wait_for("the till to have asked", lambda: till.status()["lanes"][0]["state"] == "backing-off", 10)
        assert till.status()["clock"] == {"offset_ms": None, "synchronised": False, "estimated": 0}
        assert "503 instead of the upstream's time" in till.status()["lanes"][0]["last_error"]
        assert head.status()["ledger"]["accepted"] == 0


def test_a_till_with_a_wrong_token_waits_and_goes_on_when_it_is_put_right(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "tills").write_text("an older one")
    with FakeUpstream(api_key="workspace-key") as fake:
        config = {**QUICK, "ingest": {"listen": ["127.0.0.1:0"], "token_file": str(tmp_path / "token")}}
        with Collector(tmp_path / "head.db", upstream=fake.url, api_key="workspace-key", config=config) as head:
            theirs = {**QUICK, "upstream": {"auth": "token", "token_file": str(tmp_path / "tills")}}
            with Collector(tmp_path / "till.db", upstream=head.urls[0], config=theirs) as till:
                address = till.urls[0].removeprefix("http://")
                records = [event("s-1"), event("s-2")]
                assert post(address, "/v4/events/batch", records)[0] == 202
                assert post(address, "/v4/events/batch", [event("s-3")], {"Tillpost-Priority": "bulk"})[0] == 202
                wait_for("the pause", lambda: {lane["state"] for lane in till.status()["lanes"]} == {"paused"}, 20)
                (tmp_path / "tills").write_text(TOKEN)
                till.reload()
                wait_for("delivery", lambda: fake.stored_count == 3, 20)
                lanes = head.status()["lanes"]
                # a backfill stays out of the way of live traffic there too, from its first batch on
                assert {lane["priority"] for lane in lanes} == {"live", "bulk"}
        assert fake.violations == []
