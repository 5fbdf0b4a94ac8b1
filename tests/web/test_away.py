"""A sidecar that is killed and comes back, twice, under each policy for a full memory."""

import random
import signal

import pytest

from collector.testing import FakeUpstream
from tracker import Client, Counters, Failure, Tracker

from .servers import KEY, Sidecar, eventually, stored

COUNT = 10_000
AWAY = ((2_000, 4_000), (6_000, 8_000))


@pytest.fixture(scope="module")
def api():
    """Not the one the other tests share: what is sent again after a kill would be counted as theirs."""
    with FakeUpstream(KEY) as fake:
        yield fake
        assert fake.violations == []


@pytest.fixture(scope="module")
def sidecar(api, tmp_path_factory):
    one = Sidecar(tmp_path_factory.mktemp("s"), api.url).start()
    yield one
    one.stop()


class Shop:
    """A tracker with what it was given, and what came back."""

    def __init__(self, sidecar: Sidecar, name: str, **options: object) -> None:
        self.name = name
        self.failures: list[Failure] = []
        self.peak = 0
        self.tracker = Tracker(sidecar.url, on_error=self.failures.append, close_timeout=30.0, **options)
        self._clients = [Client(custom_id=f"{name}-{n}") for n in range(4)]
        self._chance = random.Random(7)

    def track(self, n: int) -> None:
        self.tracker.custom(self._chance.choice(self._clients), action=self.name, params={"n": n})
        if n % 100 == 0:
            self.peak = max(self.peak, self.tracker.counters().waiting)

    def close(self) -> Counters:
        self.tracker.close()
        return self.tracker.counters()

    def judge(self, api) -> list[int]:
        """What was called back; all the rest is at the API, once, in the order tracked for each client."""
        counted = self.close()
        lost = [failure.record["params"]["n"] for failure in self.failures]
        assert counted.tracked == COUNT == counted.durable + counted.refused + counted.dropped
        assert counted.refused + counted.dropped == len(lost) == len(set(lost))
        assert all(failure.reason == "full" for failure in self.failures)
        expected = sorted({*range(COUNT)} - {*lost})
        arrived = stored(api, self.name)
        assert sorted(record["params"]["n"] for record in arrived) == expected
        for client in {record["client"]["customId"] for record in arrived}:
            seen = [record["params"]["n"] for record in arrived if record["client"]["customId"] == client]
            assert seen == sorted(seen)
        return lost


def test_ten_thousand_records_with_the_sidecar_killed_and_back_twice_all_arrive_once_in_order(sidecar, api):
    """Killed in the middle of a request, perhaps after it was stored: the copy overwrites."""
    before, shop = api.stored_count, Shop(sidecar, "away.roomy")
    for n in range(COUNT):
        for gone, back in AWAY:
            if n == gone:
                sidecar.stop(signal.SIGKILL)
            if n == back:
                sidecar.start()
        shop.track(n)
        if n in (1_999, 5_999):
            eventually(lambda n=n: shop.tracker.counters().durable > n - 1_500)
    assert shop.tracker.flush(30)
    eventually(lambda: api.stored_count == before + COUNT, 60)
    assert shop.judge(api) == []


def test_memory_is_bounded_and_what_does_not_fit_is_lost_by_the_stated_policy_and_called_back(sidecar, api):
    """1,000 records fit, 2,000 are tracked during each outage; every policy sees the same outages."""
    before = api.stored_count
    refuse = Shop(sidecar, "away.refuse", max_records=1_000)
    discard = Shop(sidecar, "away.discard", max_records=1_000, when_full="discard-oldest")
    block = Shop(sidecar, "away.block", max_records=1_000, when_full="block", block_for=0.0001)
    shops = [refuse, discard, block]
    for start in range(0, COUNT, 500):
        there = not any(gone <= start < back for gone, back in AWAY)
        if there and start in (4_000, 8_000):
            sidecar.start()
        if not there and start in (2_000, 6_000):
            sidecar.stop(signal.SIGKILL)
        for n in range(start, start + 500):
            for shop in shops:
                shop.track(n)
        assert not there or all(shop.tracker.flush(30) for shop in shops)
    eventually(lambda: api.stored_count == before + sum(shop.close().durable for shop in shops), 60)
    lost = {shop: shop.judge(api) for shop in shops}
    assert max(shop.peak for shop in shops) == 1_000
    for shop in shops:
        assert all(any(gone <= n < back + 500 for gone, back in AWAY) for n in lost[shop])
        assert 2_000 <= len(lost[shop]) <= 3_000  # the 500 after each outage may find no room yet
    for shop in (refuse, block):
        assert {2_000, 2_999, 6_000, 6_999}.isdisjoint(lost[shop])
        assert {3_000, 3_999, 7_000, 7_999} <= {*lost[shop]}
        assert shop.close().refused == len(lost[shop])
    assert {3_999, 7_999}.isdisjoint(lost[discard])
    assert {2_900, 6_900} <= {*lost[discard]}
    assert discard.close().dropped == len(lost[discard])


def test_blocking_loses_nothing_when_the_sidecar_is_back_in_time(sidecar, api):
    """The call waits for room: 300 records through a memory of 10."""
    before = api.stored_count
    sidecar.stop(signal.SIGKILL)
    with Tracker(sidecar.url, max_records=10, when_full="block", block_for=20.0, close_timeout=20.0) as tracker:
        anna = Client(custom_id="C-1")
        for n in range(10):
            tracker.custom(anna, action="away.back", params={"n": n})
        sidecar.start()
        for n in range(10, 300):
            tracker.custom(anna, action="away.back", params={"n": n})
    eventually(lambda: api.stored_count == before + 300)
    assert [record["params"]["n"] for record in stored(api, "away.back")] == list(range(300))
