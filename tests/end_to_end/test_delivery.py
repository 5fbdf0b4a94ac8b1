"""From an application to exactly one event at the API, through everything in between."""

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from collector import Collector
from collector.demo.processes import wait_for
from collector.testing import FakeUpstream
from tests.end_to_end.clients import adds_up, event, post, sale, salts
from tracker import Client, Money, Product, Source, Tracker, events

BRISK = {"clock": {"margin": 0, "tolerance": 2}, "batch": {"linger": "50ms"}, "delivery": {"backoff_base": "50ms"}}


def collector(path: Path, fake: FakeUpstream, **config: Any) -> Collector:
    settings = {section: {**values} for section, values in BRISK.items()}
    for section, values in config.items():
        settings.setdefault(section, {}).update(values)
    settings.setdefault("ingest", {}).setdefault("listen", ["127.0.0.1:0"])
    return Collector(path / "tillpost.db", upstream=fake.url, api_key="k", config=settings)


def address(running: Collector) -> str:
    return running.urls[0].removeprefix("http://")


def test_a_backlog_of_small_mixed_requests_leaves_in_full_batches(tmp_path: Path) -> None:
    chance = random.Random(1)
    with FakeUpstream(api_key="k") as fake:
        fake.fault("reset", path="*", times=None)
        with collector(tmp_path, fake) as running:
            number = 0
            for _ in range(400):
                records = [event(f"s{number + i}", chance.randrange(4)) for i in range(chance.randrange(1, 51))]
                number += len(records)
                assert post(address(running), "/v4/events/batch", records)[0] == 202
            fake.clear_faults()
            assert running.drain(60)
            ledger = running.status()["ledger"]
        assert ledger["delivered"] == ledger["accepted"] == number == fake.stored_count
        assert fake.violations == []
        by_lane = defaultdict(list)
        for batch in fake.report()["batches"]:
            if batch["status"] == 202:
                by_lane[batch["identifier"]].append(batch["fill"])
        assert len(by_lane) == 4
        for fills in by_lane.values():
            assert len(fills) > 1
            assert min(fills[:-1]) >= 0.95


def test_large_records_fill_batches_by_bytes(tmp_path: Path) -> None:
    with FakeUpstream(api_key="k") as fake:
        fake.fault("reset", path="*", times=None)
        with collector(tmp_path, fake) as running:
            for i in range(200):
                records = [event(f"s{i}-{j}", note="x" * 5000) for j in range(5)]
                assert post(address(running), "/v4/events/batch", records)[0] == 202
            fake.clear_faults()
            assert running.drain(60)
        accepted = [batch for batch in fake.report()["batches"] if batch["status"] == 202]
        assert all(batch["bytes"] <= 1_000_000 for batch in accepted)
        assert min(batch["fill"] for batch in accepted[:-1]) >= 0.95
        assert fake.violations == []


def test_bulk_and_live_records_travel_apart(tmp_path: Path) -> None:
    with FakeUpstream(api_key="k") as fake, collector(tmp_path, fake) as running:
        post(address(running), "/v4/events/batch", [event("live")])
        post(address(running), "/v4/events/batch", [event("bulk")], {"Tillpost-Priority": "bulk"})
        assert running.drain(20)
        assert sorted(lane["priority"] for lane in running.status()["lanes"]) == ["bulk", "live"]
        assert fake.stored_count == 2


def test_one_bad_record_in_five_hundred_costs_at_most_nineteen_requests_and_only_itself(tmp_path: Path) -> None:
    with FakeUpstream(api_key="k") as fake:
        fake.fault("reject", salt="s321", hint=False, times=None)
        with collector(tmp_path, fake) as running:
            assert post(address(running), "/v4/events/batch", [event(f"s{i}") for i in range(500)])[0] == 202
            wait_for("all to be settled", lambda: running.status()["ledger"]["pending"] == 0)
            ledger = running.status()["ledger"]
        batches = fake.report()["batches"]
        assert (ledger["delivered"], ledger["dead"]) == (499, 1)
        assert sorted(salts(fake.stored)) == sorted(f"s{i}" for i in range(500) if i != 321)
        assert len(batches) <= 19
        assert fake.violations == []


def test_an_answer_that_was_lost_makes_an_overwrite_and_no_second_event(tmp_path: Path) -> None:
    with FakeUpstream(api_key="k") as fake:
        fake.fault("drop_answer", times=2)
        with collector(tmp_path, fake) as running:
            post(address(running), "/v4/events/batch", [event(f"s{i}") for i in range(50)])
            post(address(running), "/v4/transactions/batch", [sale(f"o{i}") for i in range(20)])
            assert running.drain(20)
        assert fake.stored_count == 70
        assert fake.overwritten > 0
        assert fake.altered == 0
        assert fake.violations == []


def test_an_expired_token_is_renewed_once_for_all_lanes(tmp_path: Path) -> None:
    with FakeUpstream(api_key="k") as fake, collector(tmp_path, fake) as running:
        post(address(running), "/v4/events/batch", [event("first")])
        wait_for("the first delivery", lambda: fake.stored_count == 1)
        fake.expire_tokens()
        post(address(running), "/v4/events/batch", [event(f"s{i}", i % 4) for i in range(40)])
        wait_for("the rest", lambda: fake.stored_count == 41)
        logins = [request for request in fake.requests if "login" in request.path]
        assert len(logins) == 2
        assert fake.violations == []


def test_missing_time_and_salt_are_given_once_and_survive_a_lost_answer(tmp_path: Path) -> None:
    bare = {"label": "x", "client": {"email": "a@example.com"}, "params": {"sku": "1"}}
    with FakeUpstream(api_key="k") as fake:
        fake.fault("drop_answer", times=1)
        with collector(tmp_path, fake) as running:
            assert post(address(running), "/v4/events/product-view", bare)[0] == 202
            assert post(address(running), "/v4/events/batch", [{"type": "shared", **bare}])[0] == 202
            assert running.drain(20)
        assert fake.stored_count == 2
        assert fake.overwritten > 0
        assert all(record["eventSalt"] and record["time"].endswith("Z") for record in fake.stored)


def test_a_restart_finds_everything_where_it_was(tmp_path: Path) -> None:
    with FakeUpstream(api_key="k") as fake:
        fake.fault("reset", path="*", times=None)
        with collector(tmp_path, fake) as running:
            post(address(running), "/v4/events/batch", [event(f"s{i}", i % 4) for i in range(100)])
        fake.clear_faults()
        with collector(tmp_path, fake) as running:
            assert running.drain(20)
            assert adds_up(running.status()["ledger"])
        assert sorted(salts(fake.stored)) == sorted(f"s{i}" for i in range(100))


def test_a_record_ahead_of_time_is_held_and_nothing_is_ever_sent_from_the_future(tmp_path: Path) -> None:
    with FakeUpstream(api_key="k", clock_offset_s=-600, server_time="milliseconds") as fake:
        with collector(tmp_path, fake, clock={"margin": "100ms"}) as running:
            with Tracker(running) as tracker:  # stamps with a clock ten minutes ahead of the API's
                receipt = tracker.logged_in(Client(email="a@example.com"))
                assert receipt.wait(10)
            wait_for("it to leave with its time repaired", lambda: fake.stored_count == 1)
            assert running.status()["clock"]["offset_ms"] == pytest.approx(-600_000, abs=1000)
        assert fake.violations == []
        assert fake.stored[0]["time"] < receipt.time


OPEN_POINTS: list[dict[str, Any]] = [
    {"token_life_s": 0.5},
    {"jwt": True},
    {"one_mb": 1_048_576},
    {"transactions_max_records": 100},
    {"over_size_status": 400},
    {"over_count_status": 413},
    {"push_type": "segment"},
    {"push_type": "custom"},
    {"recommendation_view_type": "segment"},
    {"recommendation_view_type": "custom"},
    {"identifiers": "same-keys"},
    {"identifiers": "first-key"},
    {"nulls": "refuse"},
    {"nulls": "ignore"},
    {"params_email": "accept"},
    {"cart_url": "url"},
    {"error_shape": "bare"},
    {"error_shape": "2022"},
    {"bad_transactions": 207},
    {"bad_transactions": 207, "error_shape": "bare"},
    {"bad_transactions": 207, "error_shape": "2022"},
    {"server_time": "milliseconds"},
    {"denied": frozenset({"client.logout"}), "denied_events": "403"},
    {"denied": frozenset({"client.logout"}), "denied_events": "drop"},
    {"wrong_key_status": 403},
    {"max_rate": 400.0},
]


@pytest.mark.parametrize("switches", OPEN_POINTS, ids=lambda s: ",".join(f"{k}={v}" for k, v in s.items()))
def test_every_record_arrives_once_whichever_way_the_api_decides_its_open_points(
    tmp_path: Path, switches: dict[str, Any]
) -> None:
    types = (
        {"recommendation-view": "custom:recommendation.view"}
        if "custom" in switches.get("recommendation_view_type", "")
        else {}
    )
    config = {"upstream": {"types": types}} if types else {}
    with FakeUpstream(api_key="k", **switches) as fake:
        fake.fault("reject", order_id="bad", times=None)
        with collector(tmp_path, fake, **config) as running, Tracker(running) as tracker:
            people = [
                Client(email="a@example.com"),
                Client(custom_id="C-1"),
                Client(uuid="00000000-0000-4000-8000-000000000001"),
                Client(email="b@example.com", uuid="00000000-0000-4000-8000-000000000002"),
            ]
            tea = Product(sku="A-1", name="Tea", quantity=2, final_unit_price=Money("12.50", "PLN"))
            for person in people:
                tracker.logged_in(person)
                tracker.logged_out(person)
                tracker.push_viewed(person, id="p")
                tracker.recommendation_view(person, items=["A-1"], campaign_id="c", correlation_id="r")
                tracker.added_to_cart(
                    person, sku="A-1", quantity=1, final_unit_price=Money("1", "PLN"), url="https://x.pl"
                )
                tracker.track(events.Custom(person, action="a.b", params={"n": 1}))
                for order in ("1", "2"):
                    tracker.transaction(
                        person, order_id=order, payment_method="CASH", source=Source.POS, products=[tea]
                    )
            tracker.transaction(people[0], order_id="bad", payment_method="CASH", source=Source.POS, products=[tea])
            assert tracker.flush(10)
            denied = 4 if "denied" in switches else 0
            waiting = denied if switches.get("denied_events") == "403" else 0
            wait_for("everything that may to be settled", lambda: running.status()["ledger"]["pending"] == waiting)
            ledger = running.status()["ledger"]
        assert fake.violations == []
        assert ledger["dead"] == 1
        assert adds_up(ledger)
        assert fake.stored_count == 4 * 8 - denied
        assert ledger["delivered"] == 4 * 8 - waiting
