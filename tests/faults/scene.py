"""A collector that delivers to the strict fake over a road with holes, and what must be true of it in the end."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from collector import Collector
from collector.testing import FakeUpstream
from tests.end_to_end.clients import UUID, adds_up, event, sale, salts
from tests.faults.road import Road

IMPATIENT: dict[str, dict[str, Any]] = {
    "batch": {"linger": 0},
    "clock": {"margin": 0},
    "upstream": {"timeout": "400ms"},
    "delivery": {"backoff_base": "10ms", "backoff_max": "40ms", "pause_probe": "40ms", "retry_after_max": "300ms"},
}
"""The real timing, a thousand times faster."""


def until(what: str, condition: Callable[[], object], timeout: float = 20.0) -> None:
    """Wait until it is so; fail, naming what never happened."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s for {what}"
        time.sleep(0.005)


def moment(seconds: float) -> None:
    """Let a little time pass, where time itself is what is tested."""
    end = time.monotonic() + seconds
    until("a moment to pass", lambda: time.monotonic() > end)


class Scene:
    """Accepts records, and knows which."""

    def __init__(self, running: Collector, fake: FakeUpstream, road: Road) -> None:
        self.running, self.fake, self.road = running, fake, road
        self.accepted: list[str] = []

    def accept(self, events: int = 20, sales: int = 5, *, lanes: int = 2, pad: int = 0) -> None:
        """Records of two lanes of events and one of transactions; returns when they are durable."""
        n = len(self.accepted)
        some = [event(f"e{n + i}", UUID if i % 2 and lanes > 1 else 0, pad="x" * pad) for i in range(events)]
        others = [sale(f"{n + events + i}") for i in range(sales)]
        self._post("/v4/events/batch", some)
        self._post("/v4/transactions/batch", others)
        self.accepted += salts(some) + salts(others)

    def _post(self, path: str, records: list[dict[str, Any]]) -> None:
        if records:
            headers = {"Content-Type": "application/json"}
            status, _, answer = self.running.receive(path, json.dumps(records).encode(), headers, 10)
            assert status == 202, answer

    @property
    def ledger(self) -> dict[str, int]:
        ledger: dict[str, int] = self.running.status()["ledger"]
        assert adds_up(ledger)
        return ledger

    @property
    def lanes(self) -> list[dict[str, Any]]:
        """What each lane is doing."""
        lanes: list[dict[str, Any]] = self.running.status()["lanes"]
        return lanes

    def all_are(self, state: str) -> None:
        """Wait until every lane is in this state."""
        until(f"every lane to be {state}", lambda: {lane["state"] for lane in self.lanes} == {state})

    def arrived(self, dead: int = 0, timeout: float = 20.0) -> None:
        """Wait until all is settled; then everything must be there once, unaltered, and nothing else."""
        until("all to be settled", lambda: self.ledger["pending"] == 0, timeout)
        ledger = self.ledger
        assert (ledger["delivered"], ledger["dead"]) == (len(self.accepted) - dead, dead)
        stored = salts(self.fake.stored)
        assert len(stored) == len(set(stored)) == len(self.accepted) - dead
        assert set(stored) <= set(self.accepted)
        assert self.fake.altered == 0
        assert self.fake.violations == []

    def all_have_been(self, state: str) -> None:
        """Wait until every lane was seen in this state, which may be a short one."""
        seen: set[tuple[str, str, str]] = set()

        def condition() -> bool:
            lanes = self.lanes
            seen.update(
                (lane["kind"], lane["identifier"], lane["priority"]) for lane in lanes if lane["state"] == state
            )
            return len(seen) == len(lanes)

        until(f"every lane to have been {state}", condition)

    def kept(self, count: int | None = None) -> None:
        """Nothing arrived, nothing is buried and nothing is gone."""
        ledger = self.ledger
        assert (ledger["pending"], ledger["dead"], ledger["discarded"]) == (count or len(self.accepted), 0, 0)


@contextmanager
def scene(
    tmp_path: Path, *, url: str | None = None, tls: Any = None, switches: dict[str, Any] | None = None, **config: Any
) -> Iterator[Scene]:
    """A collector on its road to the fake. `config` overrides sections of IMPATIENT, `url` the road's address."""
    with FakeUpstream(api_key="k", **(switches or {})) as fake, Road(fake.url, tls=tls) as road:
        told = (url or road.url).format(port=road.port)
        with carried(tmp_path, fake, road, told, **config) as now:
            yield now


@contextmanager
def carried(tmp_path: Path, fake: FakeUpstream, road: Road, url: str, **config: Any) -> Iterator[Scene]:
    """As `scene`, on a road that is there already."""
    settings = {section: {**values} for section, values in IMPATIENT.items()}
    for section, values in config.items():
        settings.setdefault(section, {}).update(values)
    key = None if settings["upstream"].get("api_key_file") else "k"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("collector.app.QUIET_S", 0.0)  # nobody sends while it stops
        with Collector(tmp_path / "tillpost.db", upstream=url, api_key=key, config=settings) as running:
            try:
                yield Scene(running, fake, road)
            finally:
                road.mend()
